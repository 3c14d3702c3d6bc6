"""PNG files made chunk by chunk: every colour type and depth, interlaced or not, with any chunk in any place."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable, Sequence

import numpy as np

SIGNATURE = b"\x89PNG\r\n\x1a\n"
GREY, RGB, PALETTE, GREY_ALPHA, RGB_ALPHA = 0, 2, 3, 4, 6
CHANNELS = {GREY: 1, RGB: 3, PALETTE: 1, GREY_ALPHA: 2, RGB_ALPHA: 4}
FIRST = (b"iCCP", b"gAMA", b"sRGB", b"cHRM", b"cICP", b"sBIT")
DEPTHS = [(GREY, d) for d in (1, 2, 4, 8, 16)] + [(PALETTE, d) for d in (1, 2, 4, 8)]
DEPTHS += [(colour, d) for colour in (RGB, GREY_ALPHA, RGB_ALPHA) for d in (8, 16)]
PASSES = [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)]


def chunk(kind: bytes, body: bytes = b"", *, crc: int | None = None) -> bytes:
    right = zlib.crc32(kind + body)
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", right if crc is None else crc)


def rows(samples: np.ndarray, depth: int) -> bytes:
    """Unfiltered rows of samples (H, W, C), most significant bit first."""
    flat = samples.reshape(len(samples), -1)
    if depth == 16:
        packed = flat.astype(">u2").view(np.uint8).reshape(len(flat), -1)
    else:
        bits = (flat[..., None] >> np.arange(depth - 1, -1, -1)) & 1
        packed = np.packbits(bits.reshape(len(flat), -1).astype(np.uint8), axis=1)
    return b"".join(b"\x00" + row.tobytes() for row in packed)


def raster(samples: np.ndarray, depth: int, *, interlaced: bool = False) -> bytes:
    if not interlaced:
        return rows(samples, depth)
    parts = [samples[y::dy, x::dx] for x, y, dx, dy in PASSES]
    return b"".join(rows(part, depth) for part in parts if part.size)


def header(samples: np.ndarray, colour: int, depth: int, *, interlaced: bool = False) -> bytes:
    height, width = samples.shape[:2]
    return chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, interlaced))


def png(
    samples: np.ndarray,
    colour: int,
    depth: int,
    *,
    chunks: Sequence[bytes] = (),
    after: Iterable[bytes] = (),
    palette: np.ndarray | None = None,
    interlaced: bool = False,
    pieces: int = 1,
    end: bytes = chunk(b"IEND"),
) -> bytes:
    """`samples` (H, W, C) in `pieces` chunks; `chunks` stand before them, those of colour before the palette."""
    first = [made for made in chunks if made[4:8] in FIRST]
    data = zlib.compress(raster(samples, depth, interlaced=interlaced))
    size = -(-len(data) // pieces)
    return b"".join(
        [
            SIGNATURE,
            header(samples, colour, depth, interlaced=interlaced),
            *first,
            chunk(b"PLTE", palette.astype(np.uint8).tobytes()) if palette is not None else b"",
            *(made for made in chunks if made[4:8] not in FIRST),
            *(chunk(b"IDAT", data[i : i + size]) for i in range(0, len(data), size)),
            *after,
            end,
        ]
    )


def drawn(colour: int, depth: int, *, height: int = 16, width: int = 16, seed: int = 0) -> np.ndarray:
    """Random samples (H, W, C)."""
    shape = (height, width, CHANNELS[colour])
    return np.random.default_rng(seed).integers(0, 1 << depth, shape)


def palette_of(depth: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (1 << depth, 3))


def eight_bit(samples: np.ndarray, depth: int) -> np.ndarray:
    """Samples of any depth as bytes: scaled up, or the high byte of 16 bits."""
    return (samples >> 8 if depth == 16 else samples * 255 // ((1 << depth) - 1)).astype(np.uint8)
