"""Resizing written as reshapes and matrix products, which trace to plain ONNX operators."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def double_nearest(x: Tensor) -> Tensor:
    """Every pixel of (N, C, H, W) repeated twice in both directions: (N, C, 2 H, 2 W)."""
    rows, columns = _repeat(x.shape[2]), _repeat(x.shape[3])
    return rows.to(x) @ x @ columns.to(x).T


def box_mean(x: Tensor, side: int) -> Tensor:
    """Mean over every `side` x `side` window that lies inside (N, C, H, W): (N, C, H - side + 1, W - side + 1)."""
    rows, columns = _band(x.shape[2], side), _band(x.shape[3], side)
    return rows.to(x) @ x @ columns.to(x).T


def smooth3(x: Tensor) -> Tensor:
    """3x3 mean of (N, C, H, W) with replicated borders, of the same size."""
    rows, columns = _smoothing(x.shape[2]), _smoothing(x.shape[3])
    return rows.to(x) @ x @ columns.to(x).T


def resize_bilinear(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Bilinear interpolation (half-pixel centres, no antialiasing) of (N, C, h, w) to `size` as two matrix products."""
    rows, columns = _matrix(x.shape[2], size[0]), _matrix(x.shape[3], size[1])
    return rows.to(x) @ x @ columns.to(x).T


def _repeat(inputs: int) -> Tensor:
    """(2 n, n): each row picks one entry, each entry twice; exact."""
    return torch.from_numpy(np.repeat(np.eye(int(inputs), dtype=np.float32), 2, axis=0))


def _band(inputs: int, side: int) -> Tensor:
    """(n - side + 1, n): means of `side` neighbours."""
    outputs = int(inputs) - side + 1
    offset = np.arange(int(inputs)) - np.arange(outputs)[:, None]
    return torch.from_numpy(((offset >= 0) & (offset < side)).astype(np.float32) / np.float32(side))


def _smoothing(inputs: int) -> Tensor:
    """(n, n): means of three neighbours, the border's own pixel counted again beyond it."""
    index = np.clip(np.arange(int(inputs))[:, None] + np.array([-1, 0, 1]), 0, int(inputs) - 1)
    return torch.from_numpy(np.eye(int(inputs), dtype=np.float32)[index].sum(1) / np.float32(3))


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
