"""Strategies of hostile uploads: random bytes, damaged real images, honest but unusual ones, headers that lie."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
from hypothesis import strategies as st
from PIL import Image

from tests.gateway.icc_files import ADOBE, cmyk_profile, rgb_profile
from tests.gateway.png_files import GREY, PALETTE, RGB, chunk, drawn, palette_of, png

_RNG = np.random.default_rng(0)
_PHOTO = Image.fromarray(_RNG.integers(0, 256, (40, 56, 3), dtype=np.uint8))
_WIDE = rgb_profile(ADOBE, 2.2)
_SMOOTH = Image.fromarray(np.broadcast_to(np.arange(48, dtype=np.uint8)[:, None, None] * 5, (48, 48, 3)).copy())


def _saved(image: Image.Image, fmt: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, fmt, **options)
    return buffer.getvalue()


def _exif(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif.tobytes()


def _png_header(width: int, height: int, depth: int, colour: int) -> bytes:
    """A PNG whose header promises any size, with hardly any data."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(64))) + chunk(b"IEND", b"")
    )


def _tagged(*chunks: bytes, colour: int = RGB, depth: int = 8) -> bytes:
    """A PNG with chunks that change its pixels."""
    palette = palette_of(depth) if colour == PALETTE else None
    return png(drawn(colour, depth), colour, depth, chunks=chunks, palette=palette, interlaced=depth != 8)


UNUSUAL = [
    _tagged(chunk(b"tRNS", bytes(6)), depth=16),
    _tagged(chunk(b"tRNS", b"\x00\x03"), colour=GREY, depth=4),
    _tagged(chunk(b"tRNS", bytes(range(9))), colour=PALETTE, depth=4),
    _tagged(chunk(b"gAMA", struct.pack(">I", 100_000))),
    _tagged(chunk(b"gAMA", struct.pack(">I", 30_000)), depth=16),
    _tagged(chunk(b"iCCP", b"wide\x00\x00" + zlib.compress(_WIDE)), chunk(b"eXIf", _exif(6))),
    _saved(_PHOTO, "JPEG", icc_profile=_WIDE),
    _saved(_PHOTO, "WEBP", icc_profile=_WIDE, exif=_exif(7)),
    _saved(_PHOTO.convert("CMYK"), "JPEG", icc_profile=cmyk_profile()),
    _saved(_PHOTO, "JPEG", restart_marker_blocks=1),
    _saved(_PHOTO.convert("P"), "BMP"),
    _saved(_PHOTO, "PNG"),
    _saved(_PHOTO, "JPEG", quality=80),
    _saved(_SMOOTH, "JPEG", progressive=True),
    _saved(_PHOTO.convert("CMYK"), "JPEG"),
    _saved(_PHOTO.convert("L"), "JPEG"),
    _saved(_PHOTO, "WEBP"),
    _saved(_PHOTO, "WEBP", lossless=True),
    _saved(_PHOTO, "BMP"),
    _saved(_PHOTO.convert("P"), "PNG"),
    _saved(_PHOTO.convert("P"), "PNG", transparency=3),
    _saved(_PHOTO.convert("1"), "PNG"),
    _saved(_PHOTO.convert("LA"), "PNG"),
    _saved(_PHOTO.convert("RGBA"), "PNG"),
    _saved(Image.fromarray(_RNG.integers(0, 65_536, (20, 20), dtype=np.uint16)), "PNG"),
    _saved(_PHOTO, "PNG", save_all=True, append_images=[_SMOOTH.resize(_PHOTO.size)]),
    _saved(_PHOTO, "WEBP", save_all=True, append_images=[_SMOOTH.resize(_PHOTO.size)], duration=50),
    _saved(_PHOTO.resize((1, 1)), "PNG"),
    _saved(_PHOTO.resize((3000, 2)), "JPEG"),
    *(_saved(_PHOTO, "JPEG", exif=_exif(orientation)) for orientation in range(10)),
]


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """A real image with bytes flipped, cut, repeated, overwritten or joined to another's."""
    data = bytearray(draw(st.sampled_from(UNUSUAL)))
    for _ in range(draw(st.integers(1, 6))):
        if not data:
            break
        at = draw(st.integers(0, len(data) - 1))
        length = draw(st.integers(1, 40))
        match draw(st.sampled_from(["flip", "cut", "drop", "repeat", "write", "join", "count"])):
            case "flip":
                data[at] ^= 1 << draw(st.integers(0, 7))
            case "cut":
                del data[at:]
            case "drop":
                del data[at : at + length]
            case "repeat":
                data[at:at] = data[at : at + length] * draw(st.integers(1, 50))
            case "write":
                data[at : at + length] = draw(st.binary(max_size=40))
            case "join":
                data[at:] = draw(st.sampled_from(UNUSUAL))[at:]
            case "count":
                data[at : at + 4] = struct.pack(">I", draw(st.sampled_from([0, 1, 0x7FFFFFFF, 0xFFFFFFFF, 0xFFFF])))
    return bytes(data)


lying_pngs = st.builds(
    _png_header,
    st.sampled_from([0, 1, 7, 4000, 65_535, 2**31 - 1]),
    st.sampled_from([0, 1, 7, 4000, 65_535, 2**31 - 1]),
    st.sampled_from([1, 2, 4, 8, 16, 3]),
    st.sampled_from([0, 2, 3, 4, 6, 5]),
)
magic = st.builds(
    bytes.__add__,
    st.sampled_from(
        [b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"RIFF\x00\x00\x00\x00WEBPVP8X", b"BM", b"GIF89a", b"II*\x00"]
    ),
    st.binary(max_size=400),
)
uploads = st.one_of(damaged(), st.sampled_from(UNUSUAL), lying_pngs, magic, st.binary(max_size=600))
content_types = st.one_of(
    st.sampled_from(
        [
            "image/png",
            "image/jpeg",
            "image/*",
            "application/octet-stream",
            "",
            "text/plain",
            "application/json",
            "multipart/form-data",
            "multipart/form-data; boundary=x",
            "multipart/form-data; boundary=",
            "image/png; a=b",
            "image/svg+xml",
            "application/x-www-form-urlencoded",
        ]
    ),
    st.text(st.characters(min_codepoint=33, max_codepoint=126), max_size=40),
)
