"""The chunks of a PNG file (W3C PNG, third edition), of which its decoder sees only those that make the pixels.

A critical chunk must be whole, known and of the right checksum. An ancillary chunk never refuses an image: those that
are used (tRNS, iCCP, sRGB, gAMA, eXIf) are dropped where they are damaged or misplaced, all others unread. What follows
the image data is not read: animation frames, late metadata, a missing end.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from gateway.core.colour_profiles import MAX_PROFILE
from gateway.errors import UndecodableImage

SIGNATURE = b"\x89PNG\r\n\x1a\n"
GREY, RGB, PALETTE, GREY_ALPHA, RGB_ALPHA = 0, 2, 3, 4, 6
CHANNELS = {GREY: 1, RGB: 3, PALETTE: 1, GREY_ALPHA: 2, RGB_ALPHA: 4}
_DEPTHS = {GREY: (1, 2, 4, 8, 16), RGB: (8, 16), PALETTE: (1, 2, 4, 8), GREY_ALPHA: (8, 16), RGB_ALPHA: (8, 16)}
_BEFORE_PALETTE = (b"iCCP", b"sRGB", b"gAMA")
_CRITICAL = (b"IHDR", b"PLTE", b"IDAT")
_INTENTS = (b"\x00", b"\x01", b"\x02", b"\x03")  # all that an sRGB chunk may hold
_USED = (b"tRNS", b"iCCP", b"sRGB", b"gAMA", b"eXIf")
_CUT = "the data end before the image does"


@dataclass(frozen=True)
class Png:
    """What is used of a file.

    `transparent` is the one sample (grey) or three (RGB), at the file's depth, that stand for transparent pixels.
    `chunks` are the image data, as they were.
    `gamma` is the exponent of the encoding (gAMA; 1 is linear light), None where sRGB or nothing is stated.
    """

    width: int
    height: int
    depth: int
    colour: int
    interlaced: bool
    palette: bytes | None = None
    alphas: bytes | None = None
    transparent: tuple[int, ...] | None = None
    profile: bytes | None = None
    gamma: float | None = None
    exif: bytes = b""
    chunks: bytes = field(default=b"", repr=False)

    def file(self, *, depth: int, colour: int) -> bytes:
        """A PNG file of these pixels alone; `depth` and `colour` may name another layout of as many bits a pixel."""
        header = struct.pack(">IIBBBBB", self.width, self.height, depth, colour, 0, 0, self.interlaced)
        chunks = [(b"IHDR", header)]
        if self.palette is not None:
            chunks.append((b"PLTE", self.palette))
        if self.alphas is not None:
            chunks.append((b"tRNS", self.alphas))
        return SIGNATURE + b"".join(_chunk(kind, body) for kind, body in chunks) + self.chunks + _chunk(b"IEND", b"")


class _Chunk(NamedTuple):
    kind: bytes
    start: int
    end: int


def read_png(data: bytes) -> Png:
    """The chunks that make the pixels and their colours; `UndecodableImage` if a critical one is missing or wrong."""
    chunks = _chunks(data)
    first = next(chunks, None)
    if first is None or first.kind != b"IHDR" or first.end - first.start != 25:
        raise UndecodableImage("PNG without a header")
    width, height, depth, colour, packing, filters, interlace = struct.unpack_from(">IIBBBBB", data, 16)
    if depth not in _DEPTHS.get(colour, ()) or packing or filters or interlace > 1:
        raise UndecodableImage(
            f"PNG of colour type {colour} with {depth} bits, methods {packing}, {filters}, {interlace}"
        )
    palette: bytes | None = None
    used: dict[bytes, bytes] = {}
    begin = end = 0
    for kind, start, stop in chunks:
        if kind == b"IDAT":
            begin, end = begin or start, stop
            continue
        body = data[start + 8 : stop - 4]
        if kind == b"PLTE":
            if palette is not None:
                raise UndecodableImage("PNG with two palettes")
            palette = _palette(body, colour)
        elif (kind in _BEFORE_PALETTE and palette is not None) or (
            kind == b"tRNS" and colour == PALETTE and palette is None
        ):
            continue  # misplaced
        elif kind == b"IHDR":
            raise UndecodableImage("PNG with two headers")
        else:
            used.setdefault(kind, body)
    if not end:
        raise UndecodableImage(_CUT)
    if colour == PALETTE and not palette:
        raise UndecodableImage("PNG without its palette")
    return Png(
        width=width,
        height=height,
        depth=depth,
        colour=colour,
        interlaced=bool(interlace),
        # Samples beyond the palette are black, as in libpng.
        palette=palette[: 3 << depth].ljust(3 << depth, b"\x00") if palette and colour == PALETTE else None,
        alphas=_alphas(used.get(b"tRNS", b""), palette or b"") if colour == PALETTE else None,
        transparent=_transparent(used.get(b"tRNS", b""), colour, depth),
        profile=_profile(used.get(b"iCCP", b""), colour),
        gamma=None if used.get(b"sRGB") in _INTENTS else _gamma(used.get(b"gAMA", b"")),
        exif=used.get(b"eXIf", b""),
        chunks=data[begin:end],
    )


def _chunks(data: bytes) -> Iterator[_Chunk]:
    """The critical chunks, and the used ones that are sound, up to the end of the image data."""
    position, seen, view = len(SIGNATURE), False, memoryview(data)
    while position + 8 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, position)
        if seen and kind != b"IDAT":
            return
        seen = kind == b"IDAT"
        start, end = position, position + 12 + length
        if end > len(data):
            raise UndecodableImage(_CUT)
        position = end
        if not kind.isalpha():
            raise UndecodableImage(f"PNG with a chunk of type {kind!r}")
        critical = not kind[0] & 0x20
        if not critical and kind not in _USED:
            continue
        if zlib.crc32(view[start + 4 : end - 4]) == int.from_bytes(data[end - 4 : end], "big"):
            if critical and kind not in _CRITICAL:
                raise UndecodableImage(f"PNG with an unknown critical chunk, {kind!r}, or without image data")
            yield _Chunk(kind, start, end)
        elif critical:
            raise UndecodableImage(f"PNG with a damaged chunk, {kind!r}")


def _chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def _palette(body: bytes, colour: int) -> bytes | None:
    if colour != PALETTE:
        return b""  # a suggestion for displays of few colours
    if not body or len(body) % 3 or len(body) > 768:
        raise UndecodableImage(f"PNG with a palette of {len(body)} bytes")
    return body


def _alphas(body: bytes, palette: bytes) -> bytes | None:
    return body if 0 < len(body) <= len(palette) // 3 else None


def _transparent(body: bytes, colour: int, depth: int) -> tuple[int, ...] | None:
    if colour not in (GREY, RGB) or len(body) != 2 * CHANNELS[colour]:
        return None
    return tuple(value & ((1 << depth) - 1) for value in struct.unpack(f">{CHANNELS[colour]}H", body))


def _profile(body: bytes, colour: int) -> bytes | None:
    """The ICC profile of an iCCP chunk, if it unpacks and is of the image's colour space."""
    name, _, rest = body.partition(b"\x00")
    if not 1 <= len(name) <= 79 or rest[:1] != b"\x00":
        return None
    try:
        unpacker = zlib.decompressobj()
        profile = unpacker.decompress(rest[1:], MAX_PROFILE)
    except zlib.error:
        return None
    wanted = b"GRAY" if colour in (GREY, GREY_ALPHA) else b"RGB "
    return profile if unpacker.eof and profile[16:20] == wanted else None


def _gamma(body: bytes) -> float | None:
    """The exponent in hundred thousandths; values that libpng refuses as absurd are ignored."""
    value = int.from_bytes(body, "big") if len(body) == 4 else 0
    return value / 100_000 if 16 <= value <= 625_000_000 else None
