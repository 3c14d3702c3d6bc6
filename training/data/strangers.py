"""Images unlike a data set, made of its own: what stands for "unfamiliar" where no other data are at hand.

Each change destroys what the classes are told apart by and keeps something of how the images look: colours, spectrum,
edges, textures. None of them is a change that a camera makes (`training.data.corruptions`).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from PIL import Image, ImageFilter

Strange = Callable[[np.ndarray, np.random.Generator], np.ndarray]


def _mixed(x: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The mean of two images."""
    return np.asarray((x.astype(np.float32) + x[rng.permutation(len(x))]) / 2)


def _halves(x: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The left half of one image beside the right half of another."""
    made = x.copy()
    half = x.shape[2] // 2
    made[:, :, half:] = x[rng.permutation(len(x)), :, half:]
    return made


def _shuffled(x: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Sixteen fields of the image in another order."""
    n, height, width, channels = x.shape
    h, w = height // 4, width // 4
    fields = x[:, : 4 * h, : 4 * w].reshape(n, 4, h, 4, w, channels).transpose(0, 1, 3, 2, 4, 5)
    fields = fields.reshape(n, 16, h, w, channels)
    fields = np.stack([image[rng.permutation(16)] for image in fields])
    made = x.copy()
    whole = fields.reshape(n, 4, 4, h, w, channels).transpose(0, 1, 3, 2, 4, 5)
    made[:, : 4 * h, : 4 * w] = whole.reshape(n, 4 * h, 4 * w, channels)
    return made


def _negative(x: np.ndarray, rng: np.random.Generator) -> np.ndarray:  # noqa: ARG001
    """The negative, its channels exchanged where there are several."""
    return 255 - x[..., ::-1]


def _close(x: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A random third of the image, as large as the image."""
    n, height, width, _ = x.shape
    h, w = max(2, height // 3), max(2, width // 3)
    made = np.empty_like(x)
    for i in range(n):
        top, left = rng.integers(0, height - h + 1), rng.integers(0, width - w + 1)
        part = x[i, top : top + h, left : left + w]
        made[i] = _each(part, lambda image: image.resize((width, height), Image.Resampling.BILINEAR))
    return made


def _phases(x: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The image's spectrum with the phases of noise: its colours and textures without shapes."""
    noise = np.fft.fft2(rng.standard_normal(x.shape[:3]), axes=(1, 2))
    phase = noise / np.maximum(np.abs(noise), 1e-9)
    phase[:, 0, 0] = 1.0
    spectrum = np.abs(np.fft.fft2(x.astype(np.float64), axes=(1, 2)))
    return np.asarray(np.fft.ifft2(spectrum * phase[..., None], axes=(1, 2)).real)


def _fog(x: np.ndarray, rng: np.random.Generator) -> np.ndarray:  # noqa: ARG001
    """A blur over an eighth of the side."""
    radius = x.shape[2] / 8
    return np.stack([_each(image, lambda im: im.filter(ImageFilter.GaussianBlur(radius))) for image in x])


def _lines(x: np.ndarray, rng: np.random.Generator) -> np.ndarray:  # noqa: ARG001
    """Edges alone, bright on black."""
    down = np.abs(np.diff(x.astype(np.float32), axis=1, append=x[:, -1:].astype(np.float32)))
    across = np.abs(np.diff(x.astype(np.float32), axis=2, append=x[:, :, -1:].astype(np.float32)))
    return np.asarray(3 * (down + across))


STRANGERS: dict[str, Strange] = {
    "mixed": _mixed,
    "halves": _halves,
    "shuffled": _shuffled,
    "negative": _negative,
    "close": _close,
    "phases": _phases,
    "fog": _fog,
    "lines": _lines,
}


def strangers(images: np.ndarray, *, seed: int) -> dict[str, np.ndarray]:
    """uint8 images (N, H, W, C) under each change of `STRANGERS`, by its name: uint8, of the same shape."""
    return {
        name: np.ascontiguousarray(
            change(images, np.random.default_rng([seed, number])).round().clip(0, 255).astype(np.uint8)
        )
        for number, (name, change) in enumerate(STRANGERS.items())
    }


def _each(image: np.ndarray, change: Callable[[Image.Image], Image.Image]) -> np.ndarray:
    grey = image.shape[2] == 1
    made = np.asarray(change(Image.fromarray(image[..., 0] if grey else image)))
    return made[..., None] if grey else made
