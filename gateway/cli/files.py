"""Image files named on the command line: folders are walked in a fixed order."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from gateway.core.decode import recognized
from gateway.errors import ImageTooLarge, UnreadableFile

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".bmp", ".dib"})
# Decoding has a limit of its own; this one keeps a stray disk image out of memory.
MAX_FILE_BYTES = 100_000_000


class Image(Protocol):
    """An image wherever it lies; instances are sent to workers, so they hold names and numbers alone."""

    @property
    def name(self) -> str:
        """Its name in a report, which no other image has."""

    def stat(self) -> tuple[int, float | None]:
        """Size in bytes, and time of the last change (seconds since 1970; None where it is unknown).

        Raises `UnreadableFile`.
        """

    def read(self) -> bytes:
        """The bytes; raises `UnreadableFile`, `ImageTooLarge` or, for what stands for a shard, `DamagedShard`."""


@dataclass(frozen=True)
class ImageFile:
    """A file, and its path relative to the folder that was named (its name, where the file itself was)."""

    path: Path
    relative: Path

    @property
    def name(self) -> str:
        return str(self.path)

    def stat(self) -> tuple[int, float | None]:
        """See `Image`."""
        try:
            stat = self.path.stat()
        except OSError as error:
            raise UnreadableFile(error.strerror or str(error)) from None
        return stat.st_size, stat.st_mtime

    def read(self) -> bytes:
        """The bytes; raises `UnreadableFile` or `ImageTooLarge`."""
        try:
            size = self.path.stat().st_size
            if size > MAX_FILE_BYTES:
                raise ImageTooLarge(f"{size} bytes, at most {MAX_FILE_BYTES} are read")
            return self.path.read_bytes()
        except OSError as error:
            raise UnreadableFile(error.strerror or str(error)) from None


def find_images(paths: Iterable[Path]) -> list[ImageFile]:
    """Files as they are named, and the images in folders, by name; each once.

    An image is recognised by its suffix, or else by its first bytes. Names that begin with a dot are left out, as are
    folders behind links.
    """
    found: dict[Path, ImageFile] = {}
    for path in paths:
        named = not path.is_dir()
        for file in files_in(path):
            if named or is_image(file.path):
                found.setdefault(file.path, file)
    return list(found.values())


def files_in(root: Path) -> Iterator[ImageFile]:
    """The files in a folder, by name, without hidden ones and folders behind links; `root` itself where it is none."""
    if not root.is_dir():
        yield ImageFile(root, Path(root.name))
    for folder, folders, names in os.walk(root):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            path = Path(folder, name)
            if not name.startswith(".") and path.is_file():
                yield ImageFile(path, path.relative_to(root))


def is_image(path: Path) -> bool:
    """Whether the suffix, or else the first bytes, are those of an image."""
    if path.suffix.lower() in SUFFIXES:
        return True
    try:
        with path.open("rb") as file:
            return recognized(file.read(16))
    except OSError:
        return False
