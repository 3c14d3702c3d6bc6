"""torch's antialiased resize of bytes, to the bit, without torch.

Hugging Face's image processors resize tensors of bytes. As Pillow, torch makes two passes with a byte between them, but
always across first, and with weights of 15 bits where Pillow's have 22 and its passes the cheaper order. Both are in
torch's `_compute_index_ranges_int16_weights` and `upsample_avx_bilinear_bicubic_uint8` (aten/src/ATen/native/cpu/
UpSampleKernel.cpp and UpSampleKernelAVXAntialias.h, BSD).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

_BLOCK = 32  # pixels made at once: their sources are neighbours, so that a pass is a few small products of matrices
_STRIP = 256  # source rows at once, which bounds the memory of a large photograph
_LARGEST_WEIGHT = 1 << 15
_EXACT = 1 << 24  # below this float32 holds every whole number


def resized(image: np.ndarray, size: tuple[int, int], kept: tuple[slice, slice], name: str) -> np.ndarray:
    """uint8 (H, W) or (H, W, C) scaled to `size` (width, height), of which `kept` (rows, columns) are returned.

    `name` is bilinear, bicubic or lanczos. An axis that has its size already is left as it is.
    """
    height, width = image.shape[:2]
    rows, columns = kept
    down = _weights(height, size[1], rows, name)
    first, last = down.first[0], down.last[-1]
    planes = np.moveaxis(image[first:last].reshape(last - first, width, -1), 2, 0)
    across = _weights(width, size[0], columns, name)
    strips = [_pass(np.ascontiguousarray(planes[:, i : i + _STRIP]), across) for i in range(0, last - first, _STRIP)]
    upright = np.concatenate(strips, axis=1).swapaxes(1, 2)
    made = _pass(np.ascontiguousarray(upright), down._replace(first=down.first - first, last=down.last - first))
    return np.ascontiguousarray(np.moveaxis(made, 0, 2).swapaxes(0, 1)).reshape(
        made.shape[2], made.shape[1], *image.shape[2:]
    )


class _Weights(NamedTuple):
    """Of each pixel made: the sources from `first` to `last`, and their whole `values` (made, taps), over 2^`bits`."""

    first: np.ndarray
    last: np.ndarray
    values: np.ndarray
    bits: int

    @property
    def exact(self) -> type[np.floating]:
        """The smallest type in which sums of bytes by these weights have no rounding."""
        return np.float32 if 256 * np.abs(self.values).sum(1).max() < _EXACT else np.float64


def _weights(source: int, scaled: int, kept: slice, name: str) -> _Weights:
    if source == scaled:
        at = np.arange(kept.start, kept.stop)
        return _Weights(at, at + 1, np.ones((len(at), 1)), 0)
    radius, function = _FILTERS[name]
    by = source / scaled
    wide = max(by, 1.0)
    middle = by * (np.arange(scaled) + 0.5)
    first = np.maximum((middle - radius * wide + 0.5).astype(np.int64), 0)
    last = np.minimum((middle + radius * wide + 0.5).astype(np.int64), source)
    place = first[:, None] + np.arange((last - first).max())
    values = np.where(place < last[:, None], function((place - middle[:, None] + 0.5) * (1 / wide)), 0.0)
    values /= values.sum(1, keepdims=True)
    bits = 0
    while bits < 22 and int(0.5 + values.max() * (1 << bits + 1)) < _LARGEST_WEIGHT:
        bits += 1
    whole = np.trunc(values * (1 << bits) + np.copysign(0.5, values))
    return _Weights(first[kept], last[kept], whole[kept], bits)


def _pass(planes: np.ndarray, weights: _Weights) -> np.ndarray:
    """uint8 (C, A, source) -> uint8 (C, A, made)."""
    if not weights.bits:
        return planes[:, :, weights.first]
    channels, lines, source = planes.shape
    flat = planes.reshape(channels * lines, source).astype(weights.exact)
    made = np.empty((channels * lines, len(weights.first)), np.uint8)
    for start in range(0, len(weights.first), _BLOCK):
        block = slice(start, start + _BLOCK)
        low, high = weights.first[block][0], weights.last[block].max()
        sums = flat[:, low:high] @ _matrix(weights, block, low, high)
        sums += 1 << weights.bits - 1
        made[:, block] = np.floor(sums / (1 << weights.bits)).clip(0, 255)
    return made.reshape(channels, lines, -1)


def _matrix(weights: _Weights, block: slice, low: int, high: int) -> np.ndarray:
    """(high - low, made): the weights of a block's pixels at their sources; those beyond `last` are zero anyway."""
    values = weights.values[block]
    place = weights.first[block][:, None] - low + np.arange(values.shape[1])
    matrix = np.zeros((high - low + values.shape[1], len(values)), weights.exact)
    matrix[place, np.arange(len(values))[:, None]] = values
    return matrix[: high - low]


def _bilinear(x: np.ndarray) -> np.ndarray:
    return np.asarray((1 - np.abs(x)).clip(0))


def _bicubic(x: np.ndarray) -> np.ndarray:
    x, a = np.abs(x), -0.5
    inner, outer = ((a + 2) * x - (a + 3)) * x * x + 1, (((x - 5) * x + 8) * x - 4) * a
    return np.where(x < 1, inner, np.where(x < 2, outer, 0.0))


def _lanczos(x: np.ndarray) -> np.ndarray:
    return np.where(np.abs(x) < 3, np.sinc(x) * np.sinc(x / 3), 0.0)


_FILTERS: dict[str, tuple[int, Callable[[np.ndarray], np.ndarray]]] = {
    "bilinear": (1, _bilinear),
    "bicubic": (2, _bicubic),
    "lanczos": (3, _lanczos),
}
