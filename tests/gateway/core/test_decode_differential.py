"""The decoder against libvips, which shares neither Pillow's code nor ours: 700 files of seeded kinds.

Both must agree within 2 of 255. What differs by design is not generated here, and stated in docs/api.md, "Images":

- gamma of PNGs (gAMA): libvips ignores it; `test_decode_colour` has the closed form;
- CMYK without a profile: libvips brings one of its own, the gateway has a formula;
- BMP: libvips's wheel has no reader; the samples that were written are the reference;
- ICC profiles of 16-bit PNGs: the gateway converts the high bytes, libvips all bits;
- damaged files: libvips returns what it has of some.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections import Counter
from typing import NamedTuple

import numpy as np
import pytest
import pyvips
from PIL import Image

from gateway.core.decode import decode_image, open_image
from gateway.core.manifest import InputSpec
from tests.gateway.exif_blocks import block, short
from tests.gateway.icc_files import ADOBE, SRGB, grey_profile, rgb_profile
from tests.gateway.png_files import CHANNELS, DEPTHS, GREY, GREY_ALPHA, PALETTE, RGB, chunk, palette_of, png

PROFILES = {"RGB": [rgb_profile(ADOBE, 2.2), rgb_profile(SRGB, 1.8)], "L": [grey_profile(1.8)]}


class File(NamedTuple):
    kind: str
    data: bytes


def exif_of(rng: np.random.Generator) -> bytes:
    order = "<>"[rng.integers(2)]
    return block(order, [short(order, int(rng.integers(1, 9)))])


def image_of(rng: np.random.Generator, channels: int) -> np.ndarray:
    """Noise, a ramp or flat fields, uint8 (H, W, channels)."""
    height, width = (int(side) for side in rng.integers(8, 40, 2))
    match rng.integers(3):
        case 0:
            return rng.integers(0, 256, (height, width, channels), dtype=np.uint8)
        case 1:
            y, x = np.mgrid[0:height, 0:width]
            return np.stack([(x * (5 + c) + y * (9 - c)) % 256 for c in range(channels)], -1).astype(np.uint8)
        case _:
            fields = rng.integers(0, 256, (3, 3, channels), dtype=np.uint8)
            return fields.repeat(-(-height // 3), 0).repeat(-(-width // 3), 1)[:height, :width]


def a_png(rng: np.random.Generator) -> File:
    colour, depth = DEPTHS[rng.integers(len(DEPTHS))]
    samples = image_of(rng, CHANNELS[colour]).astype(int)
    samples = samples * 257 + rng.integers(0, 2, samples.shape) if depth == 16 else samples >> (8 - depth)
    samples = samples.clip(0, 65_535)
    kind, chunks, palette = f"png {colour} {depth}", [], palette_of(depth) if colour == PALETTE else None
    if colour in (GREY, RGB) and rng.random() < 0.5:
        key = samples[0, 0]
        chunks.append(chunk(b"tRNS", struct.pack(f">{len(key)}H", *key)))
        kind += " tRNS"
    elif colour == PALETTE and rng.random() < 0.6:
        chunks.append(chunk(b"tRNS", rng.integers(0, 256, rng.integers(1, (1 << depth) + 1), dtype=np.uint8).tobytes()))
        kind += " tRNS"
    if rng.random() < 0.4:
        chunks.append(chunk(b"eXIf", exif_of(rng)))
        kind += " turned"
    # littleCMS is given 8 bits here, 16 bits there: of dark samples that is more than a level.
    if depth <= 8 and rng.random() < 0.3:
        profiles = PROFILES["L" if colour in (GREY, GREY_ALPHA) else "RGB"]
        icc = profiles[rng.integers(len(profiles))]
        chunks.append(chunk(b"iCCP", b"name\x00\x00" + zlib.compress(icc)))
        kind += " icc"
    interlaced = bool(rng.integers(2))
    pieces = int(rng.integers(1, 4))
    return File(kind, png(samples, colour, depth, chunks=chunks, palette=palette, interlaced=interlaced, pieces=pieces))


def saved(rng: np.random.Generator, kind: str, mode: str, fmt: str, **options: object) -> File:
    pixels = image_of(rng, {"L": 1, "RGB": 3, "RGBA": 4}[mode])
    if rng.random() < 0.4:
        options["exif"] = b"Exif\x00\x00" + exif_of(rng)
        kind += " turned"
    if rng.random() < 0.3:
        profiles = PROFILES["L" if mode == "L" else "RGB"]
        options["icc_profile"] = profiles[rng.integers(len(profiles))]
        kind += " icc"
    buffer = io.BytesIO()
    Image.fromarray(pixels[..., 0] if mode == "L" else pixels).save(buffer, fmt, **options)
    return File(kind, buffer.getvalue())


def a_jpeg(rng: np.random.Generator) -> File:
    mode, progressive = ("L", "RGB")[rng.integers(2)], bool(rng.integers(2))
    options = {"quality": int(rng.integers(20, 100)), "subsampling": int(rng.integers(3)), "progressive": progressive}
    if not progressive and rng.random() < 0.3:
        options["restart_marker_blocks"] = int(rng.integers(1, 5))
    return saved(rng, f"jpeg {mode}{' progressive' * progressive}", mode, "JPEG", **options)


def a_webp(rng: np.random.Generator) -> File:
    mode, lossless = ("RGB", "RGBA")[rng.integers(2)], bool(rng.integers(2))
    kind = f"webp {mode}{' lossless' * lossless}"
    return saved(rng, kind, mode, "WEBP", lossless=lossless, quality=int(rng.integers(20, 100)), method=0)


FILES = [
    make(np.random.default_rng(seed))
    for make, count in ((a_png, 400), (a_jpeg, 170), (a_webp, 130))
    for seed in range(count)
]


def ours(data: bytes) -> np.ndarray:
    width, height = open_image(data).upright_size
    return decode_image(data, InputSpec(height=height, width=width)).astype(int)


def theirs(data: bytes) -> np.ndarray:
    """Upright, in sRGB, on white, by libvips."""
    image = pyvips.Image.new_from_buffer(data, "").autorot()
    if image.get_typeof("icc-profile-data"):
        image = image.icc_transform("srgb", embedded=True, intent="perceptual")
    if image.format == "ushort":
        image = image.cast("uchar", shift=True).copy(interpretation="srgb" if image.bands > 2 else "b-w")
    if image.hasalpha():
        image = image.flatten(background=[255])
    pixels = image.numpy().astype(int)
    pixels = pixels[..., None] if pixels.ndim == 2 else pixels
    return np.broadcast_to(pixels, (*pixels.shape[:2], 3))


def test_both_decode_alike() -> None:
    worst: Counter[str] = Counter()
    for file in FILES:
        mine, other = ours(file.data), theirs(file.data)
        assert mine.shape == other.shape, file.kind
        worst[file.kind] = max(worst[file.kind], int(np.abs(mine - other).max()))
    assert {kind: levels for kind, levels in worst.items() if levels > 2} == {}
    assert len(FILES) >= 500


def test_the_files_are_of_every_kind() -> None:
    """Else the comparison would hold of nothing."""
    kinds = Counter(word for file in FILES for word in file.kind.split())
    for word in ("tRNS", "turned", "icc", "progressive", "lossless", "jpeg", "webp", "png", "RGBA", "16"):
        assert kinds[word] >= 40, word
    assert {file.kind[:7].strip() for file in FILES if file.kind.startswith("png")} >= {
        f"png {colour} {depth}"[:7].strip() for colour, depth in DEPTHS
    }


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "1"])
def test_bmp_gives_the_samples_that_were_written(mode: str) -> None:
    for seed in range(20):
        image = Image.fromarray(image_of(np.random.default_rng(seed), 3)).convert(mode)
        buffer = io.BytesIO()
        image.save(buffer, "BMP")
        np.testing.assert_array_equal(ours(buffer.getvalue()), np.asarray(image.convert("RGB")))
