from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from gateway.atomic import PRIVATE, replacing, write_text


def test_a_body_that_fails_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "kept.txt"
    write_text(path, "old")

    def fails() -> None:
        with replacing(path) as draft:
            draft.write_text("half of the n")
            assert path.read_text() == "old"
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fails()
    assert path.read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["kept.txt"]


def test_a_disk_that_fails_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "kept.txt"
    write_text(path, "old")

    def broken(_descriptor: int) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "fsync", broken)
    with pytest.raises(OSError, match="Input/output"):
        write_text(path, "new")
    assert path.read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["kept.txt"]


def test_two_writers_of_one_path_have_files_of_their_own(tmp_path: Path) -> None:
    path = tmp_path / "both.txt"
    with replacing(path) as first, replacing(path) as second:
        assert first != second
        first.write_text("first")
        second.write_text("second")
    assert path.read_text() == "first"  # the outer one finished last
    assert [file.name for file in tmp_path.iterdir()] == ["both.txt"]


@pytest.mark.parametrize(("mode", "found"), [(PRIVATE, 0o600), (0o666, 0o640)])
def test_permissions_are_those_asked_for_less_the_umask(tmp_path: Path, mode: int, found: int) -> None:
    path = tmp_path / "file"
    before = os.umask(0o027)
    try:
        path.write_text("anybody's")
        path.chmod(0o666)
        write_text(path, "new", mode=mode)
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == found


def test_text_is_utf8(tmp_path: Path) -> None:
    write_text(tmp_path / "text", "ü\n")
    assert (tmp_path / "text").read_bytes() == b"\xc3\xbc\n"
