"""The segments of a JPEG file (ITU-T T.81, annex B), of which its decoder sees only those that make the pixels.

Application segments and comments never refuse an image: the first EXIF block and the ICC profile are taken out, the
JFIF and Adobe markers that choose the colour model are passed on, all others unread.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from gateway.errors import UndecodableImage

# An ordinary progressive JPEG has about ten scans; each costs a pass over the whole image, however few its bytes.
MAX_SCANS = 100
_TEM, _SOI, _EOI, _SOS, _HIERARCHY, _COMMENT = 0x01, 0xD8, 0xD9, 0xDA, 0xDE, 0xFE
_FRAMES = frozenset((*range(0xC0, 0xD0), _HIERARCHY)) - {0xC4, 0xC8, 0xCC}
_PROGRESSIVE = (0xC2, 0xCA)
# The next marker that entropy-coded data can't hold: not a stuffed zero, a restart marker or a fill byte.
_NEXT_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")
_CUT = "the data end before the image does"


@dataclass(frozen=True)
class Jpeg:
    """What is used of a file; `file` lacks its end marker.

    `sequential`: the decoder gives each row as soon as it has its data, since Huffman codes of one scan hold them all.
    """

    size: tuple[int, int]
    sequential: bool
    scans: int
    exif: bytes
    profile: bytes | None
    file: bytes = field(repr=False)


class _Segment(NamedTuple):
    kind: int
    start: int
    end: int


class _Remarks:
    """What the application segments state."""

    def __init__(self) -> None:
        self._exif: list[bytes] = []
        self._parts: list[bytes] = []

    def take(self, kind: int, body: bytes) -> bytes:
        """Store what a segment states; returns the bytes of it that the decoder needs."""
        if kind == 0xE1 and body.startswith(b"Exif\x00\x00"):
            self._exif.append(body[6:])  # a block of more than 64 KB is continued
        elif kind == 0xE2 and body.startswith(b"ICC_PROFILE\x00"):
            self._parts.append(body[12:])
        elif (kind == 0xE0 and body.startswith(b"JFIF\x00")) or (kind == 0xEE and body.startswith(b"Adobe")):
            size = 14 if kind == 0xE0 else 12
            if len(body) >= size:
                return struct.pack(">BBH", 0xFF, kind, size + 2) + body[:size]
        return b""

    @property
    def exif(self) -> bytes:
        """The EXIF block."""
        return b"".join(self._exif)

    @property
    def profile(self) -> bytes | None:
        """The ICC profile of its numbered parts; None unless each part occurs once."""
        parts = sorted(self._parts)
        if len(parts) > 255 or any(part[:2] != bytes((i, len(parts))) for i, part in enumerate(parts, 1)):
            return None
        return b"".join(part[2:] for part in parts) or None


def read_jpeg(data: bytes) -> Jpeg:
    """The segments that make the pixels and their colours.

    Raises `UndecodableImage` where the data end before the end marker, where scans send less than all coefficients, and
    at more than `MAX_SCANS` scans.
    """
    kept, remarks = [b"\xff\xd8"], _Remarks()
    scans: list[bytes] = []
    frame: tuple[int, bytes] | None = None
    scanned = after = end = 0
    for kind, start, stop in _segments(data):
        after = after or (start if scanned else 0)
        if kind == _EOI:
            end = start
        elif kind == _SOS:
            scans.append(data[start + 4 : stop])
            scanned = scanned or start
            if len(scans) > MAX_SCANS:
                raise UndecodableImage(f"JPEG of more than {MAX_SCANS} scans")
        elif scanned or kind in (_COMMENT, _TEM, _SOI):
            continue
        elif 0xE0 <= kind <= 0xEF:
            if needed := remarks.take(kind, data[start + 4 : stop]):
                kept.append(needed)
        else:
            kept.append(data[start:stop])
            if kind in _FRAMES:
                if frame is not None or kind == _HIERARCHY:
                    raise UndecodableImage("JPEG of more than one frame")
                frame = kind, data[start + 4 : stop]
    if frame is None or not scans or not end:
        raise UndecodableImage(_CUT)
    kind, header = frame
    height, width = struct.unpack_from(">HH", header, 1)
    _check_complete(header, scans, progressive=kind in _PROGRESSIVE)
    sequential = len(scans) == 1 and kind not in _PROGRESSIVE and kind < 0xC8
    # Any other marker would end the scan as the end marker does.
    kept.append(data[scanned : after if sequential else end])
    return Jpeg((width, height), sequential, len(scans), remarks.exif, remarks.profile, b"".join(kept))


def _segments(data: bytes) -> Iterator[_Segment]:
    """Markers but those inside scans, up to the end marker; `start` is at the marker, `end` behind the body."""
    position = 2
    while marker := _NEXT_MARKER.search(data, position):
        kind, position = data[marker.end() - 1], marker.end()
        if kind == _EOI:  # what follows is not decoded
            yield _Segment(kind, marker.start(), position)
            return
        if kind in (_TEM, _SOI):
            yield _Segment(kind, marker.start(), position)
            continue
        length = int.from_bytes(data[position : position + 2], "big")  # counts itself
        if length < 2 or position + length > len(data):
            raise UndecodableImage(_CUT)
        position += length
        yield _Segment(kind, marker.start(), position)


def _check_complete(header: bytes, scans: list[bytes], *, progressive: bool) -> None:
    """Every coefficient of every component must be sent to its last bit: scans that are missing were cut off."""
    if not header[5]:
        raise UndecodableImage("JPEG without components")
    coefficients = 64 if progressive else 1  # all at once
    missing = {(name, i) for name in header[6::3][: header[5]] for i in range(coefficients)}
    for scan in scans:
        count = scan[0] if scan else 0
        if len(scan) < 4 + 2 * count:
            raise UndecodableImage(_CUT)
        first, last, bits = scan[1 + 2 * count :][:3] if progressive else (0, 0, 0)
        if not bits & 15:  # else a later scan refines it
            missing -= {(name, i) for name in scan[1 : 1 + 2 * count : 2] for i in range(first, last + 1)}
    if missing:
        raise UndecodableImage(_CUT)
