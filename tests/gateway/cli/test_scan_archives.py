"""`palisade scan` of tar shards and of object stores: the same rows as of folders, and no record lost."""

from __future__ import annotations

import io
import json
import os
import tarfile
import time
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import fsspec
import pytest
from typer.testing import CliRunner, Result

from gateway.cli.archives import Failed, LocalBlob, Shard, find_members, find_places
from gateway.cli.files import Image
from gateway.cli.main import app
from gateway.cli.shards import read_members
from tests.gateway.tiny import clean_image, encode, patched_image

runner = CliRunner()
CLEAN, PATCHED, GREEN = encode(clean_image()), encode(patched_image()), encode(clean_image((0, 120, 0)))
MEMBERS = {
    "./a/clean.png": CLEAN,
    "a/patched.jpg": PATCHED,
    "a/notes.txt": b"text",
    "no suffix": GREEN,
    ".x.png": CLEAN,
}
INSIDE = ["a/clean.png", "a/patched.jpg", "no suffix"]


def write_shard(path: Path, members: Sequence[tuple[str, bytes]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def scan(out: Path, models: Path, *paths: object) -> Result:
    return runner.invoke(app, ["scan", *map(str, paths), "--out", str(out), "-m", str(models)])


def rows(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in out.read_text().splitlines()]


def found(path: Path) -> list[Image]:
    return read_members(Shard(LocalBlob(str(path)), path.stat().st_size, path.stat().st_mtime))


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "report.jsonl"


@pytest.fixture
def memory() -> Iterator[str]:
    files = fsspec.filesystem("memory")
    yield "memory://archive"
    files.rm("/archive", recursive=True)


def test_a_shard_is_judged_as_its_files_are(tmp_path: Path, out: Path, bundle_folder: Path) -> None:
    shard = write_shard(tmp_path / "images" / "s.tar", list(MEMBERS.items()))
    (tmp_path / "images" / "loose.png").write_bytes(CLEAN)
    assert scan(out, bundle_folder, tmp_path / "images", shard).exit_code == 0
    assert [row["path"] for row in rows(out)] == [
        str(tmp_path / "images" / "loose.png"),
        *(f"{shard}/{name}" for name in INSIDE),
    ]
    assert [(row["label"], row["flagged"]) for row in rows(out)][1:] == [
        ("red", False),
        ("red", True),
        ("green", False),
    ]
    whole = out.read_bytes()
    assert "0 new, 4 in" in scan(out, bundle_folder, tmp_path / "images").stderr
    os.utime(shard, (1, 1))
    assert "0 new, 4 in" in scan(out, bundle_folder, tmp_path / "images").stderr
    assert out.read_bytes() == whole
    write_shard(shard, [("a/clean.png", GREEN), ("a/patched.jpg", PATCHED)])
    assert "1 new, 2 in" in scan(out, bundle_folder, tmp_path / "images").stderr


def test_members_of_one_name_are_all_judged(tmp_path: Path) -> None:
    shard = write_shard(tmp_path / "s.tar", [("a.png", CLEAN), ("./a.png", GREEN), ("a.png", PATCHED)])
    assert [(image.name.removeprefix(f"{shard}/"), image.read()) for image in found(shard)] == [
        ("a.png", CLEAN),
        ("a.png#2", GREEN),
        ("a.png#3", PATCHED),
    ]


def test_many_members_of_one_name_take_no_longer_each(tmp_path: Path) -> None:
    """Each name was looked for from 2 on: these took seven seconds."""
    shard = write_shard(tmp_path / "s.tar", [("a.png", b"")] * 8_000)
    begun = time.process_time()
    assert found(shard)[-1].name == f"{shard}/a.png#8000"
    assert time.process_time() - begun < 3


def _member(name: str, size: int, kind: bytes = tarfile.REGTYPE) -> bytes:
    header = bytearray(tarfile.TarInfo(name).tobuf(tarfile.USTAR_FORMAT))
    header[124:136] = size.to_bytes(12, "big", signed=True)
    header[124] |= 0x80
    header[148:157] = b" " * 8 + kind
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header)


@pytest.mark.parametrize(("size", "kind"), [(-1, b"0"), (-512, b"0"), (-1024, b"0"), (-512, b"Z")])
def test_a_size_below_zero_is_damage(size: int, kind: bytes, tmp_path: Path) -> None:
    """`tarfile` goes backwards, and for ever where it meets the same header again."""
    sound = _member("0.png", len(CLEAN)) + CLEAN.ljust(512, b"\0")
    (tmp_path / "s.tar").write_bytes(sound + _member("1.png", size, kind) + bytes(1024))
    first, last = found(tmp_path / "s.tar")
    assert first.read() == CLEAN
    assert isinstance(last, Failed)
    assert last.error.code == "damaged_shard"


def _cut(data: bytes) -> bytes:
    return data[: 3 * 1024 + 100]


def _cut_between_members(data: bytes) -> bytes:
    return data[: 3 * 1024]


def _damage_a_header(data: bytes) -> bytes:
    return data[: 3 * 1024] + b"\xff" * 200 + data[3 * 1024 + 200 :]


def _append_another(data: bytes) -> bytes:
    return data + data


@pytest.mark.parametrize("damage", [_cut, _cut_between_members, _damage_a_header, _append_another])
def test_rows_before_the_damage_stay_and_the_shard_is_named(
    damage: Any, tmp_path: Path, out: Path, bundle_folder: Path
) -> None:
    """Each member takes 1,024 bytes: a header, and an image of less than one block."""
    shard = write_shard(tmp_path / "s.tar", [(f"{number}.png", CLEAN) for number in range(6)])
    assert len(CLEAN) <= 512
    sound = shard.read_bytes()
    shard.write_bytes(damage(sound))
    result = scan(out, bundle_folder, shard)
    assert result.exit_code == 1
    assert "1 failed: damaged_shard" in result.stderr
    *before, last = rows(out)
    assert [row["path"] for row in before] == [f"{shard}/{n}.png" for n in range(6 if damage is _append_another else 3)]
    assert (last["path"], last["error"]) == (str(shard), "damaged_shard")
    assert last["detail"].startswith(f"{shard}: ")
    assert scan(out, bundle_folder, shard).exit_code == 1
    assert len(rows(out)) == len(before) + 1
    shard.write_bytes(sound)
    assert scan(out, bundle_folder, shard).exit_code == 0
    assert {row["path"] for row in rows(out)} == {str(shard), *(f"{shard}/{number}.png" for number in range(6))}


def test_a_member_whose_data_are_cut_off_has_a_row_as_well(tmp_path: Path, out: Path, bundle_folder: Path) -> None:
    shard = write_shard(tmp_path / "s.tar", [("0.png", CLEAN), ("1.png", CLEAN)])
    shard.write_bytes(shard.read_bytes()[: 1024 + 512 + 10])
    assert scan(out, bundle_folder, shard).exit_code == 1
    assert [row["error"] for row in rows(out)] == [None, "unreadable_file", "damaged_shard"]


@pytest.mark.parametrize("data", [b"", b"\x1f\x8b" + bytes(2000), CLEAN])
def test_what_is_no_tar_file(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "s.tar").write_bytes(data)
    (only,) = found(tmp_path / "s.tar")
    assert isinstance(only, Failed)
    assert only.error.code == "damaged_shard"


def test_an_empty_shard_holds_nothing(tmp_path: Path) -> None:
    assert found(write_shard(tmp_path / "s.tar", [])) == []


def test_a_store_is_judged_as_a_folder_is(memory: str, tmp_path: Path, out: Path, bundle_folder: Path) -> None:
    files = fsspec.filesystem("memory")
    for name, data in {"b/patched.png": PATCHED, "a.png": CLEAN, "no suffix": GREEN, "c.txt": b"text"}.items():
        files.pipe(f"/archive/{name}", data)
    files.pipe("/archive/.hidden/a.png", CLEAN)
    files.pipe("/archive/z.tar", write_shard(tmp_path / "z.tar", list(MEMBERS.items())).read_bytes())
    assert scan(out, bundle_folder, memory).exit_code == 0
    names = ["a.png", "b/patched.png", "no suffix", *(f"z.tar/{name}" for name in INSIDE)]
    assert [row["path"] for row in rows(out)] == [f"{memory}/{name}" for name in names]
    assert [row["flagged"] for row in rows(out)] == [False, True, False, False, True, False]
    assert "0 new, 6 in" in scan(out, bundle_folder, memory).stderr
    files.pipe("/archive/a.png", PATCHED)
    assert "1 new, 5 in" in scan(out, bundle_folder, memory, f"{memory}/b/patched.png").stderr
    assert rows(out)[-1]["path"] == f"{memory}/a.png"


def test_a_listing_without_sizes(memory: str, out: Path, bundle_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Web servers' listings have none, and fsspec's own `find` says nothing at all of a single file."""
    files = fsspec.filesystem("memory")
    listed: dict[str, Any] = {"/archive/a.png": {"size": None}, "/archive/b.png": {}, "/archive/c.png": {}}
    for name, data in {"a.png": CLEAN, "b.png": GREEN, "c.png": b""}.items():
        files.pipe(f"/archive/{name}", data)
    info = type(files).info

    def without_size_of_c(self: Any, path: str, **options: Any) -> Any:
        return {} if path.endswith("c.png") else info(self, path, **options)

    monkeypatch.setattr(type(files), "find", lambda self, root, **options: listed)
    monkeypatch.setattr(type(files), "info", without_size_of_c)
    assert scan(out, bundle_folder, memory).exit_code == 1
    assert [(row["label"], row["error"]) for row in rows(out)] == [
        ("red", None),
        ("green", None),
        (None, "unreadable_file"),
    ]


@pytest.mark.parametrize("name", ["a::b.png", "a/::b", "a#?b%20.png"])
def test_names_that_addresses_would_read_otherwise(name: str, memory: str, out: Path, bundle_folder: Path) -> None:
    fsspec.filesystem("memory").pipe(f"/archive/{name}", PATCHED)
    result = runner.invoke(app, ["scan", memory, "--out", str(out), "-m", str(bundle_folder), "--only-flagged"])
    assert result.exit_code == 0
    assert [row["path"] for row in rows(out)] == [f"{memory}/{name}"]
    assert result.stdout.startswith(f"{memory}/{name}\tred\t")


def test_a_store_in_a_file(tmp_path: Path, out: Path, bundle_folder: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr("a/b.png", CLEAN)
    assert scan(out, bundle_folder, f"zip://::{tmp_path}/x.zip").exit_code == 0
    assert [row["label"] for row in rows(out)] == ["red"]


def test_errors_of_stores(memory: str, out: Path, bundle_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = fsspec.filesystem("memory")
    files.pipe("/archive/a.png", CLEAN)
    files.pipe("/archive/b.png", GREEN)
    files.pipe("/archive/no suffix", GREEN)
    for address, said in {
        "memory://absent": "no such file or folder",
        "nosuchprotocol://x/y": "palisade-gateway[remote]",
        "s3://user:secret@bucket/x": "give credentials by the environment",
        "ftp://127.0.0.1:1/x": "refused",
    }.items():
        result = scan(out, bundle_folder, address)
        assert result.exit_code == 2
        assert said in result.stderr
        assert "secret" not in result.stderr
    cat_file = type(files).cat_file

    def fails(self: Any, path: str, **options: Any) -> bytes:
        if path.endswith(("a.png", "no suffix")):
            raise RuntimeError("throttled")
        return bytes(cat_file(self, path, **options))

    monkeypatch.setattr(type(files), "cat_file", fails)
    assert scan(out, bundle_folder, memory).exit_code == 1
    assert [row["error"] for row in rows(out)] == ["unreadable_file", None, "unreadable_file"]
    monkeypatch.undo()
    assert scan(out, bundle_folder, memory).exit_code == 0
    assert len(rows(out)) == 5
    monkeypatch.setattr(type(files), "find", fails)
    assert "throttled" in scan(out, bundle_folder, f"{memory}/a.png").stderr


def test_without_fsspec_the_extra_is_named(out: Path, bundle_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "fsspec", None)
    result = scan(out, bundle_folder, "memory://archive")
    assert result.exit_code == 2
    assert "palisade-gateway[remote]" in result.stderr


def test_each_place_once_in_a_fixed_order(tmp_path: Path) -> None:
    shard = write_shard(tmp_path / "f" / "b.tar", [("x.png", CLEAN)])
    for name in ("a.png", "c.png"):
        (tmp_path / "f" / name).write_bytes(CLEAN)
    places = find_places([str(shard), str(tmp_path / "f")])
    images = find_members(places, lambda shards: [read_members(shard) for shard in shards])
    assert [image.name for image in images] == [
        f"{shard}/x.png",
        *(str(tmp_path / "f" / n) for n in ("a.png", "c.png")),
    ]
