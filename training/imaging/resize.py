"""Resizing written as reshapes and matrix products, which trace to plain ONNX operators."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

WORKING = 48
"""Fewest cells of the shorter side at which regions and all that is smooth are computed."""


def double_nearest(x: Tensor) -> Tensor:
    """Every pixel of (N, C, H, W) repeated twice in both directions: (N, C, 2 H, 2 W)."""
    n, c, h, w = x.shape
    return x[:, :, :, None, :, None].expand(n, c, h, 2, w, 2).reshape(n, c, 2 * h, 2 * w)


def box_mean(x: Tensor, side: int) -> Tensor:
    """Mean over every `side` x `side` window inside (N, C, H, W), as products with two banded matrices.

    ONNX Runtime pools in plain layout at a tenth of the pace of a matrix product.
    """
    rows, columns = (_bands(int(extent), side) for extent in x.shape[2:])
    return rows.to(x) @ x @ columns.to(x).T


def smoothed(x: Tensor) -> Tensor:
    """Mean over the 3 x 3 pixels around each of (N, C, H, W), borders replicated, as products with two matrices."""
    rows, columns = (_replicated(int(extent)) for extent in x.shape[2:])
    return rows.to(x) @ x @ columns.to(x).T


def resize_bilinear(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Bilinear interpolation (half-pixel centres, no antialiasing) of (N, C, h, w) to `size` as two matrix products."""
    rows, columns = _matrix(x.shape[2], size[0]), _matrix(x.shape[3], size[1])
    return rows.to(x) @ x @ columns.to(x).T


def area_average(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Means over areas: (N, C, H, W) averaged down to `size`, at most H x W; of that size already: `x` itself.

    As two matrix products, so that its gradient is stock ONNX too. A pixel that lies across a border counts on either
    side by its share; weights are never negative, and those of each output sum to 1.
    """
    inputs = (int(x.shape[2]), int(x.shape[3]))
    if inputs == size:
        return x
    rows, columns = (_area_matrix(i, o) for i, o in zip(inputs, size, strict=True))
    if inputs[0] % size[0] == 0:  # means of whole rows: a quarter of the product's time
        return x.reshape(x.shape[0], x.shape[1], size[0], inputs[0] // size[0], inputs[1]).mean(3) @ columns.to(x).T
    return rows.to(x) @ x @ columns.to(x).T


def working_size(height: int, width: int) -> tuple[int, int]:
    """Cells (rows, columns) at which regions, fills and broad blurs of images of that size are computed.

    Images of fewer than 96 pixels on the shorter side keep their own size. Larger ones are divided by an integer that
    leaves 48 to 95 cells, one that divides both sides where there is such a one, so that the cost of what follows does
    not grow with the image and every share of the side means the same.
    """
    height, width = int(height), int(width)
    shorter = min(height, width)
    largest = max(1, shorter // WORKING)
    factors = [f for f in range(largest, shorter // (2 * WORKING), -1) if height % f == width % f == 0]
    factor = factors[0] if factors else largest
    return -(-height // factor), -(-width // factor)


def _bands(extent: int, side: int) -> Tensor:
    """(extent - side + 1, extent) that averages `side` neighbours."""
    first, steps = np.arange(extent - side + 1)[:, None], np.arange(extent)[None]
    inside = (steps >= first) & (steps < first + side)
    return torch.from_numpy(inside.astype(np.float32) / np.float32(side))


def _replicated(extent: int) -> Tensor:
    """(extent, extent) that averages three neighbours, the first and last of which stand for those beyond."""
    matrix = np.zeros((extent, extent), np.float32)
    for step in (-1, 0, 1):
        np.add.at(matrix, (np.arange(extent), np.clip(np.arange(extent) + step, 0, extent - 1)), 1 / 3)
    return torch.from_numpy(matrix)


def _area_matrix(inputs: int, outputs: int) -> Tensor:
    """(outputs, inputs) shares of each input in each output's stretch; rows sum to 1."""
    low = np.arange(outputs)[:, None] * inputs / outputs
    high = low + inputs / outputs
    pixels = np.arange(inputs)[None]
    shares = np.clip(np.minimum(high, pixels + 1) - np.maximum(low, pixels), 0, None)
    return torch.from_numpy((shares / shares.sum(1, keepdims=True)).astype(np.float32))


def _matrix(inputs: int, outputs: int) -> Tensor:
    """(outputs, inputs) weights of one-dimensional linear interpolation; rows sum to 1."""
    inputs, outputs = int(inputs), int(outputs)
    centre = np.clip((np.arange(outputs) + 0.5) * inputs / outputs - 0.5, 0, inputs - 1)
    low = np.floor(centre).astype(int)
    high = np.minimum(low + 1, inputs - 1)
    matrix = np.zeros((outputs, inputs), np.float32)
    np.add.at(matrix, (np.arange(outputs), low), 1 - (centre - low))
    np.add.at(matrix, (np.arange(outputs), high), centre - low)
    return torch.from_numpy(matrix)
