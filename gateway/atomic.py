"""Files that are whole or not there: written beside their place, brought to the disk, and then moved into it."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PRIVATE = 0o600


@contextmanager
def replacing(path: Path, *, mode: int = 0o666) -> Iterator[Path]:
    """An empty file beside `path`, for the body to write, that replaces `path` at the end.

    Several processes may write one path at the same time: each has a file of its own, and the last to finish remains.
    `mode` are the permissions before the umask. If the body or the disk fails, `path` stays as it was and the error is
    raised.
    """
    draft = path.with_name(f".{path.name}.{secrets.token_hex(8)}.part")
    try:
        os.close(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode))
        yield draft
        _sync(draft, os.O_RDONLY)
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)
    if hasattr(os, "O_DIRECTORY"):  # the new name is on the disk only once the folder is
        _sync(path.parent, os.O_RDONLY | os.O_DIRECTORY)


def write_text(path: Path, text: str, *, mode: int = 0o666) -> None:
    """Write `path` in UTF-8, whole or not at all; see `replacing`."""
    with replacing(path, mode=mode) as draft:
        draft.write_text(text, "utf-8")


def write_bytes(path: Path, data: bytes, *, mode: int = 0o666) -> None:
    """Write `path`, whole or not at all; see `replacing`."""
    with replacing(path, mode=mode) as draft:
        draft.write_bytes(data)


def _sync(path: Path, flags: int) -> None:
    descriptor = os.open(path, flags)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
