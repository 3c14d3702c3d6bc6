"""Resizing written as reshapes and matrix products, which trace to plain ONNX operators."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


def double_nearest(x: Tensor) -> Tensor:
    """Every pixel of (N, C, H, W) repeated twice in both directions: (N, C, 2 H, 2 W)."""
    n, c, h, w = x.shape
    return x[:, :, :, None, :, None].expand(n, c, h, 2, w, 2).reshape(n, c, 2 * h, 2 * w)


def box_mean(x: Tensor, side: int) -> Tensor:
    """Mean over every `side` x `side` window inside (N, C, H, W), by columns and then by rows: fewer sums."""
    return F.avg_pool2d(F.avg_pool2d(x, (side, 1), stride=1), (1, side), stride=1)


def resize_bilinear(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Bilinear interpolation (half-pixel centres, no antialiasing) of (N, C, h, w) to `size` as two matrix products."""
    rows, columns = _matrix(x.shape[2], size[0]), _matrix(x.shape[3], size[1])
    return rows.to(x) @ x @ columns.to(x).T


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
