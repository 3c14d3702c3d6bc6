"""A PNG's samples -> 8-bit pixels: all depths, the transparent colour, the gamma."""

from __future__ import annotations

import numpy as np
from PIL import Image

from gateway.core.colour_profiles import corrects, gamma_table, profile_of
from gateway.core.completeness import load_png
from gateway.core.png_chunks import GREY, GREY_ALPHA, RGB, RGB_ALPHA, Png

_ROWS = 64  # of 16-bit samples at a time, which need not all be in memory


def pixels_of(png: Png) -> Image.Image:
    """The image in mode 1, L, LA, P, RGB or RGBA; 16-bit samples by their high byte, or exactly where more is asked.

    The gamma is applied where no usable profile takes its place; the pixels of the transparent colour get alpha 0.
    """
    mode = "L" if png.colour in (GREY, GREY_ALPHA) else "RGB"
    gamma = png.gamma if corrects(png.gamma) and profile_of(png.profile, mode) is None else None
    if png.depth == 16:
        return _from_16(png, gamma)
    image: Image.Image = load_png(png.file(depth=png.depth, colour=png.colour))
    alpha = None
    if png.transparent is not None:
        key = np.array(png.transparent) * 255 // ((1 << png.depth) - 1)  # scaled as the samples have been
        alpha = _alpha(np.asarray(image.convert("L") if image.mode == "1" else image), key)
    if gamma is not None:
        image = _corrected(image, gamma)
    if alpha is not None:
        image = image.convert(mode)
        image.putalpha(Image.fromarray(alpha))
    return image


def _alpha(samples: np.ndarray, key: np.ndarray) -> np.ndarray:
    """uint8 (H, W): 0 where samples (H, W) or (H, W, 3) are `key`, else 255."""
    equal = samples == key[0] if samples.ndim == 2 else (samples == key).all(-1)
    return np.where(equal, 0, 255).astype(np.uint8)


def _corrected(image: Image.Image, gamma: float) -> Image.Image:
    if image.mode == "1":
        return image  # black and white stay so
    if image.mode == "P":
        image = image.convert("RGBA" if "transparency" in image.info else "RGB")
    table = gamma_table(gamma, 256).tolist()
    return image.point([level for band in image.getbands() for level in (range(256) if band == "A" else table)])


def _from_16(png: Png, gamma: float | None) -> Image.Image:
    high, low = _halves(png, low=gamma is not None or png.transparent is not None)
    colours = high.shape[2] - (png.colour in (GREY_ALPHA, RGB_ALPHA))
    made = high
    if low is not None:
        table = gamma_table(gamma, 65_536) if gamma is not None else (np.arange(65_536) >> 8).astype(np.uint8)
        made = np.concatenate([high, np.full_like(high[..., :1], 255)], 2) if png.transparent else high.copy()
        for y in range(0, len(high), _ROWS):
            deep = high[y : y + _ROWS].astype(np.uint16) << 8 | low[y : y + _ROWS]
            made[y : y + _ROWS, :, :colours] = table[deep[..., :colours]]
            if png.transparent:
                made[y : y + _ROWS, :, -1][(deep == np.array(png.transparent, np.uint16)).all(-1)] = 0
    return Image.fromarray(np.ascontiguousarray(made[..., 0] if made.shape[2] == 1 else made))


def _halves(png: Png, *, low: bool) -> tuple[np.ndarray, np.ndarray | None]:
    """High and (if asked for) low bytes of 16-bit samples, uint8 (H, W, C).

    Pillow keeps the high ones. One or two 16-bit samples a pixel are read as twice as many of 8 bits, three or four by
    the raw mode whose bytes are in the other order: filters work on bytes, and so are the same.
    """
    if png.colour in (GREY, GREY_ALPHA):
        wide = np.asarray(load_png(png.file(depth=8, colour=GREY_ALPHA if png.colour == GREY else RGB_ALPHA)))
        return wide[..., 0::2], wide[..., 1::2] if low else None
    file = png.file(depth=16, colour=png.colour)
    other = ("RGB" if png.colour == RGB else "RGBA") + ";16L"
    return np.asarray(load_png(file)), np.asarray(load_png(file, other)) if low else None
