"""Changes to images that no attacker made: effects of a camera, a codec or the weather."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter

Change = Callable[[Image.Image], Image.Image]


def jpeg(image: Image.Image, quality: int) -> Image.Image:
    """Through a JPEG file of that quality (4:2:0, as cameras and browsers write it)."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality, subsampling=2)
    return Image.open(io.BytesIO(buffer.getvalue())).convert(image.mode)


def down_up(image: Image.Image, share: float) -> Image.Image:
    """Made smaller by `share` and as large as before again, bilinear."""
    small = (max(1, round(image.width * share)), max(1, round(image.height * share)))
    return image.resize(small, Image.Resampling.BILINEAR).resize(image.size, Image.Resampling.BILINEAR)


def moved(image: Image.Image, pixels: int) -> Image.Image:
    """Shifted down and right by `pixels`, borders replicated."""
    array = np.asarray(image)
    pad = [(pixels, 0), (pixels, 0)] + [(0, 0)] * (array.ndim - 2)
    return Image.fromarray(np.ascontiguousarray(np.pad(array, pad, "edge")[: array.shape[0], : array.shape[1]]))


def rotated(image: Image.Image, degrees: float) -> Image.Image:
    """Rotated about the middle, bilinear, borders replicated."""
    edge = max(image.size)
    pad = [(edge, edge), (edge, edge)] + [(0, 0)] * (np.asarray(image).ndim - 2)
    large = Image.fromarray(np.pad(np.asarray(image), pad, "edge")).rotate(degrees, Image.Resampling.BILINEAR)
    return large.crop((edge, edge, edge + image.width, edge + image.height))


CHANGES: dict[str, Change] = {
    **{f"jpeg_{quality}": partial(jpeg, quality=quality) for quality in (90, 75, 50)},
    "resize_75": partial(down_up, share=0.75),
    "resize_50": partial(down_up, share=0.5),
    "blur_0.5": lambda image: image.filter(ImageFilter.GaussianBlur(0.5)),
    "blur_1": lambda image: image.filter(ImageFilter.GaussianBlur(1)),
    "dark_60": lambda image: ImageEnhance.Brightness(image).enhance(0.6),
    "dark_30": lambda image: ImageEnhance.Brightness(image).enhance(0.3),
    "contrast_50": lambda image: ImageEnhance.Contrast(image).enhance(0.5),
    "shift_1": partial(moved, pixels=1),
    "shift_2": partial(moved, pixels=2),
    "rotate_5": partial(rotated, degrees=5),
    "rotate_10": partial(rotated, degrees=10),
}
NOISES = {"noise_0.02": 0.02, "noise_0.05": 0.05}
"""Gaussian, standard deviation in pixels of [0, 1]."""


def changed(images: np.ndarray, name: str, *, seed: int) -> np.ndarray:
    """uint8 images (N, H, W, C) under the change `name` of `CHANGES` or `NOISES`."""
    if name in NOISES:
        rng = np.random.default_rng([seed, int(1000 * NOISES[name])])
        noisy = images / 255 + NOISES[name] * rng.standard_normal(images.shape)
        return (noisy * 255).round().clip(0, 255).astype(np.uint8)
    grey = images.shape[3] == 1
    made = [np.asarray(CHANGES[name](Image.fromarray(image[..., 0] if grey else image))) for image in images]
    return np.asarray(made, np.uint8).reshape(images.shape)


def partly_changed(images: np.ndarray, names: Sequence[str], *, share: float, seed: int) -> np.ndarray:
    """Copies of uint8 images (N, H, W, C) of which about `share` are under a change drawn from `names`."""
    rng = np.random.default_rng([seed, 17])
    drawn = rng.integers(0, max(len(names), 1), len(images))
    drawn[rng.uniform(size=len(images)) >= share] = -1
    found = images.copy()
    for number, name in enumerate(names):
        found[drawn == number] = changed(images[drawn == number], name, seed=seed)
    return found
