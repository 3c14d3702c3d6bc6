"""The images in a tar file, found by its headers alone and then read where they lie."""

from __future__ import annotations

import tarfile
from collections import Counter
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import BinaryIO

from gateway.cli.archives import Failed, Part, Shard
from gateway.cli.files import SUFFIXES, Image
from gateway.core.decode import recognized
from gateway.errors import DamagedShard, UnreadableFile
from gateway.pulling.packages import one_line

_CHUNK = 1 << 20


def read_members(shard: Shard) -> list[Image]:
    """The images in a shard, in its order, named `SHARD/MEMBER`; the second of one name has `#2` after it, and so on.

    Where the shard cannot be read to its end, the last entry is a `Failed` with the shard's name: `damaged_shard` where
    its bytes are wrong (cut off, not a header, something after its end), `unreadable_file` where they cannot be had.
    """
    found: list[Image] = []
    try:
        with shard.blob.open() as file:
            try:
                found.extend(_images(shard, file))
            except tarfile.TarError as error:
                problem = f"{shard.name}: {one_line(error)}, after {len(found)} images"
                found.append(Failed(shard.name, shard.size, shard.changed, DamagedShard(problem)))
    except Exception as error:  # noqa: BLE001 (each store has errors of its own)
        problem = f"{shard.name}: {one_line(error)}, after {len(found)} images"
        found.append(Failed(shard.name, shard.size, shard.changed, UnreadableFile(problem)))
    return found


def _images(shard: Shard, file: BinaryIO) -> Iterator[Image]:
    names: set[str] = set()
    again: Counter[str] = Counter()
    offset = -1
    with tarfile.open(fileobj=file, mode="r:") as tar:
        for member in tar:
            tar.members = []  # type: ignore[attr-defined]  # it would keep every header
            # A size below zero, which `tarfile` follows backwards, and then for ever.
            if member.size < 0 or tar.offset <= offset:
                raise tarfile.ReadError(f"a size below zero before byte {member.offset_data}")
            offset = tar.offset
            path = PurePosixPath(member.name.lstrip("/"))
            if not member.isfile() or any(part.startswith(".") and part != ".." for part in path.parts):
                continue
            if path.suffix.lower() not in SUFFIXES and not _recognized(member, file):
                continue
            name = first = f"{shard.name}/{path}"
            while name in names:
                again[first] += 1
                name = f"{first}#{again[first] + 1}"
            names.add(name)
            if member.issparse():
                yield Failed(name, member.size, shard.changed, UnreadableFile("sparse members are not read"))
            else:
                yield Part(name, shard.blob, member.offset_data, member.size, shard.changed)
        _check_end(file, tar.offset)


def _recognized(member: tarfile.TarInfo, file: BinaryIO) -> bool:
    file.seek(member.offset_data)
    return recognized(file.read(min(16, member.size)))


def _check_end(file: BinaryIO, offset: int) -> None:
    """`tarfile` ends quietly at a header that is none; a sound file ends in zeros, one block of 512 at the least."""
    file.seek(offset)
    zeros = 0
    while piece := file.read(_CHUNK):
        if piece.count(0) != len(piece):
            raise tarfile.ReadError(f"no header of a member at byte {offset}")
        zeros += len(piece)
    if zeros < tarfile.BLOCKSIZE:
        raise tarfile.ReadError(f"cut off at byte {offset + zeros}, without the mark of its end")
