"""Stickers, bars, strips and shadows without texture: obstacles of people's own making, searched at random.

Each family draws an obstacle on an image uint8 (H, W, 3); `fooling` draws until the answering network's label changes.
They are what the region of attack, which looks for fine texture and strong colours, is not made for
(docs/threat-model.md).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from gateway.core.decode import to_pixels
from gateway.core.engine import Engine

Family = Callable[[np.ndarray, np.random.Generator], np.ndarray]
TRIES = 48
_AT_ONCE = 8


def _dull_sticker(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A square of a quarter of the side, of one greyish colour."""
    side = image.shape[0] // 4
    colour = rng.integers(50, 180) + rng.integers(-15, 16, 3)
    return _box(image, rng, side, side, colour)


def _bar(image: np.ndarray, rng: np.random.Generator, colour: int) -> np.ndarray:
    """A bar of an eighth of the side, half as long as the image, lying or standing."""
    size = image.shape[0]
    thick, long = size // 8, size // 2
    return _box(image, rng, *((thick, long) if rng.random() < 0.5 else (long, thick)), np.full(3, colour))


def _black_bar(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return _bar(image, rng, 10)


def _white_bar(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return _bar(image, rng, 245)


def _strips(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Two short strips, each black or white, as in Eykholt et al. 2018 ("RP2"), but not optimised."""
    size = image.shape[0]
    for _ in range(2):
        colour = np.full(3, rng.choice([10, 245]))
        image = _box(image, rng, size // 8, size // 3, colour)
    return image


def _half_shadow(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The half-plane beyond a line through the middle third, darkened to a third (Zhong et al. 2022)."""
    height, width = image.shape[:2]
    angle, offset = rng.uniform(0, 2 * np.pi), rng.uniform(-1 / 6, 1 / 6)
    y, x = np.mgrid[:height, :width]
    beyond = (x / width - 0.5) * np.cos(angle) + (y / height - 0.5) * np.sin(angle) > offset
    return np.where(beyond[..., None], image * 0.35, image).astype(np.uint8)


def _box(image: np.ndarray, rng: np.random.Generator, height: int, width: int, colour: np.ndarray) -> np.ndarray:
    top, left = (int(rng.integers(n - side + 1)) for n, side in zip(image.shape[:2], (height, width), strict=True))
    drawn = image.copy()
    drawn[top : top + height, left : left + width] = np.clip(colour, 0, 255)
    return drawn


FAMILIES: dict[str, Family] = {
    "dull sticker": _dull_sticker,
    "black bar": _black_bar,
    "white bar": _white_bar,
    "strips": _strips,
    "half shadow": _half_shadow,
}


def fooling(
    engine: Engine, images: np.ndarray, labels: np.ndarray, family: str, n: int, *, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Rows (M,) of images uint8 (N, H, W, 3) whose right label an obstacle changes, and these images; M <= `n`.

    Images are tried in their order, `TRIES` obstacles each; the first that fools the answering network is taken.
    """
    rows: list[int] = []
    found: list[np.ndarray] = []
    for row, (image, label) in enumerate(zip(images, labels, strict=True)):
        if len(rows) == n:
            break
        rng = np.random.default_rng([seed, list(FAMILIES).index(family), row])
        if _labels(engine, image[None])[0] != label:
            continue
        for _ in range(TRIES // _AT_ONCE):
            tried = np.stack([FAMILIES[family](image, rng) for _ in range(_AT_ONCE)])
            fooled = np.flatnonzero(_labels(engine, tried) != label)
            if len(fooled):
                rows.append(row)
                found.append(tried[fooled[0]])
                break
    return np.array(rows, int), np.array(found, np.uint8).reshape(-1, *images.shape[1:])


def _labels(engine: Engine, images: np.ndarray) -> np.ndarray:
    return engine.answer(to_pixels(images), np.zeros(images.shape[:3], np.float32)).argmax(1)
