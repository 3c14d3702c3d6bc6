"""The orientation tag of EXIF blocks and TIFF files, read without interpreting any other tag.

The layout is that of TIFF 6.0, section 2 (and of BigTIFF, with wider fields): a header, then directories of entries of
(tag, type, count, value or offset of the value). Only the first directory is read: that of the image itself, not that
of its thumbnail.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from typing import NamedTuple

from PIL import Image

_ORIENTATION = 0x0112
# struct's codes of the numeric types: any of them can hold the number, though the standard asks for SHORT.
_NUMERIC = {1: "B", 3: "H", 4: "I", 6: "b", 8: "h", 9: "i", 11: "f", 12: "d", 16: "Q", 17: "q"}
_RATIONAL = {5: "II", 10: "ii"}
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_PREFIX = re.compile(rb"(?:Exif\x00\x00){0,2}")


class _Layout(NamedTuple):
    order: str
    length: str
    entry: str
    field: str


class _Entry(NamedTuple):
    start: int
    tag: int
    kind: int
    values: int


def orientation(block: bytes) -> int:
    """The orientation, 1 to 8, that an EXIF block or a TIFF file states; 1 where none can be read."""
    block = block[_end(block) :]
    layout = _layout(block)
    if layout is None:
        return 1
    values = (_value(block, layout, entry) for entry in _entries(block, layout) if entry.tag == _ORIENTATION)
    return next((value for value in values if value is not None), 1)


def without_orientation(tiff: bytes) -> bytes:
    """A TIFF file whose orientation is 1 (as stored), for a decoder that would otherwise apply it by itself."""
    layout = _layout(tiff)
    if layout is None:
        return tiff
    made = bytearray(tiff)
    for entry in _entries(tiff, layout):
        if entry.tag == _ORIENTATION:
            stored = struct.pack(layout.order + layout.entry, _ORIENTATION, 3, 1)
            value = struct.pack(layout.order + "H", 1).ljust(struct.calcsize("<" + layout.field), b"\x00")
            made[entry.start : entry.start + len(stored) + len(value)] = stored + value
    return bytes(made)


def upright(image: Image.Image, turned: int) -> Image.Image:
    """The image as it is to be seen, given its orientation (1 to 8)."""
    method = _UPRIGHT.get(turned)
    return image if method is None else image.transpose(method)


def swaps_sides(turned: int) -> bool:
    """Whether an upright image is as wide as the stored one is high."""
    return turned in (5, 6, 7, 8)


def _end(block: bytes) -> int:
    found = _PREFIX.match(block)
    return found.end() if found else 0


def _layout(block: bytes) -> _Layout | None:
    order = {b"II": "<", b"MM": ">"}.get(block[:2])
    if order is None or len(block) < 8:
        return None
    magic = set(block[2:4])  # some writers swap its bytes alone
    if magic == {0, 42}:
        return _Layout(order, "H", "HHI", "I")
    if magic == {0, 43}:
        return _Layout(order, "Q", "HHQ", "Q")
    return None


def _entries(block: bytes, layout: _Layout) -> Iterator[_Entry]:
    """The entries of the first directory, as many as there are bytes for."""
    try:
        (start,) = struct.unpack_from(layout.order + layout.field, block, 8 if layout.field == "Q" else 4)
        (count,) = struct.unpack_from(layout.order + layout.length, block, start)
        start += struct.calcsize("<" + layout.length)
        for _ in range(count):
            yield _Entry(start, *struct.unpack_from(layout.order + layout.entry, block, start))
            start += struct.calcsize("<" + layout.entry + layout.field)
    except (struct.error, OverflowError):
        return  # the block ends here


def _value(block: bytes, layout: _Layout, entry: _Entry) -> int | None:
    """The first number of an entry, if it is an orientation."""
    code = _NUMERIC.get(entry.kind) or _RATIONAL.get(entry.kind)
    if code is None or entry.values < 1:
        return None
    at = entry.start + struct.calcsize("<" + layout.entry)
    try:
        if struct.calcsize("<" + code) * entry.values > struct.calcsize("<" + layout.field):
            (at,) = struct.unpack_from(layout.order + layout.field, block, at)
        numbers = struct.unpack_from(layout.order + code, block, at)
    except (struct.error, OverflowError):
        return None
    value = numbers[0] if len(numbers) == 1 or not numbers[1] else numbers[0] / numbers[1]
    return int(value) if value in range(1, 9) else None
