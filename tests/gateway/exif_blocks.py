"""EXIF blocks made entry by entry, as no library would write them."""

from __future__ import annotations

import struct
from collections.abc import Sequence

# Bytes of a value of each TIFF type.
SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4}
ORIENTATION = 0x0112


def entry(order: str, tag: int, kind: int, count: int, value: bytes) -> bytes:
    """A directory entry; `value` is the four bytes of the value or of its offset."""
    return struct.pack(order + "HHI", tag, kind, count) + value[:4].ljust(4, b"\x00")


def short(order: str, value: int) -> bytes:
    return entry(order, ORIENTATION, 3, 1, struct.pack(order + "H", value))


def block(
    order: str, entries: Sequence[bytes], *, tail: bytes = b"", start: int = 8, count: int | None = None
) -> bytes:
    """A TIFF header and one directory at `start`, with `tail` behind it."""
    head = (b"II*\x00" if order == "<" else b"MM\x00*") + struct.pack(order + "I", start)
    directory = struct.pack(order + "H", len(entries) if count is None else count) + b"".join(entries) + bytes(4)
    return head.ljust(start, b"\x00") + directory + tail
