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
