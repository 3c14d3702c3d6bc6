"""Image files named on the command line: folders are walked in a fixed order."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from gateway.core.decode import recognized
from gateway.errors import ImageTooLarge, UnreadableFile

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".bmp", ".dib"})
# Decoding has a limit of its own; this one keeps a stray disk image out of memory.
MAX_FILE_BYTES = 100_000_000


@dataclass(frozen=True)
class ImageFile:
    """A file, and its path relative to the folder that was named (its name, where the file itself was)."""

    path: Path
    relative: Path

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
        for file in _images_in(path) if path.is_dir() else [ImageFile(path, Path(path.name))]:
            found.setdefault(file.path, file)
    return list(found.values())


def _images_in(root: Path) -> Iterator[ImageFile]:
    for folder, folders, names in os.walk(root):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            path = Path(folder, name)
            if not name.startswith(".") and path.is_file() and _is_image(path):
                yield ImageFile(path, path.relative_to(root))


def _is_image(path: Path) -> bool:
    if path.suffix.lower() in SUFFIXES:
        return True
    try:
        with path.open("rb") as file:
            return recognized(file.read(16))
    except OSError:
        return False
