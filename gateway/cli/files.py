"""Image files named on the command line: folders are walked in a fixed order."""

from __future__ import annotations

import os
import stat
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
            status = self.path.stat()
        except OSError as error:
            raise UnreadableFile(error.strerror or str(error)) from None
        return status.st_size, status.st_mtime

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
    folders behind links. What cannot be read is among them, so that reading it raises why.
    """
    found: dict[Path, ImageFile] = {}
    for path in paths:
        named = not _is_folder(path)
        for file in files_in(path):
            if named or is_image(file.path):
                found.setdefault(file.path, file)
    return list(found.values())


def files_in(root: Path) -> Iterator[ImageFile]:
    """The files in a folder, by name, without hidden ones and folders behind links; `root` itself where it is none.

    Folders that cannot be read come last, as files: to read them raises why.
    """
    if not _is_folder(root):
        yield ImageFile(root, Path(root.name))
        return
    closed: list[Path] = []
    for folder, folders, names in os.walk(root, onerror=lambda error: closed.append(Path(error.filename))):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            path = Path(folder, name)
            if not name.startswith(".") and _may_be_file(path):
                yield ImageFile(path, path.relative_to(root))
    for path in sorted(closed):
        yield ImageFile(path, path.relative_to(root))


def is_image(path: Path) -> bool:
    """Whether the suffix, or else the first bytes, are those of an image; true of what is there and cannot be read."""
    if path.suffix.lower() in SUFFIXES:
        return True
    try:
        with path.open("rb") as file:
            return recognized(file.read(16))
    except FileNotFoundError:
        return False
    except OSError:
        return True


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError:
        return False


def _may_be_file(path: Path) -> bool:
    """False of pipes, devices and folders; true of what cannot be looked at, and of links to nothing."""
    try:
        return stat.S_ISREG(path.stat().st_mode)
    except OSError:
        return True
