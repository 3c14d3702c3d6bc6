from __future__ import annotations

from pathlib import Path

import pytest

from training.util.atomic import draft_of


def test_takes_the_place_of_the_folder_at_the_end(tmp_path: Path) -> None:
    out = tmp_path / "bundle"
    out.mkdir()
    (out / "old").touch()
    with draft_of(out) as draft:
        (draft / "new").touch()
        assert (out / "old").exists()
    assert [p.name for p in tmp_path.rglob("*")] == ["bundle", "new"]


def test_a_copy_begins_with_what_was_there(tmp_path: Path) -> None:
    out = tmp_path / "bundle"
    out.mkdir()
    (out / "a").write_text("1")
    with draft_of(out, copy=True) as draft:
        (draft / "a").write_text("2")
    assert (out / "a").read_text() == "2"


def test_a_link_stays_one(tmp_path: Path) -> None:
    out, link = tmp_path / "kept" / "bundle", tmp_path / "bundle"
    out.mkdir(parents=True)
    link.symlink_to(out)
    for text in ("1", "2"):
        with draft_of(link, copy=True) as draft:
            (draft / "a").write_text(text)
    assert link.is_symlink()
    assert (out / "a").read_text() == "2"
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["a", "bundle", "bundle", "kept"]


def test_failure_leaves_what_was_there(tmp_path: Path) -> None:
    out = tmp_path / "bundle"
    out.mkdir()
    (out / "old").touch()

    def work() -> None:
        with draft_of(out) as draft:
            (draft / "new").touch()
            raise RuntimeError

    with pytest.raises(RuntimeError):
        work()
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["bundle", "old"]
