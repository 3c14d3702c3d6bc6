"""Gaussian bumps on a coarse grid: the places that an image is perturbed at, one at a time."""

from __future__ import annotations

import torch
from torch import Tensor


def bumps(grid: int, size: tuple[int, int], *, like: Tensor) -> Tensor:
    """Bumps (grid * grid, H, W) in [0, 1], row by row, as wide as half a place; of the type of `like`."""
    rows, columns = (torch.arange(extent, dtype=like.dtype, device=like.device) for extent in size)
    radius = 0.5 * max(size) / grid
    down, across = (
        torch.stack(
            [torch.exp(-((steps - ((i + 0.5) * extent / grid - 0.5)) ** 2) / (2 * radius**2)) for i in range(grid)]
        )
        for steps, extent in zip((rows, columns), size, strict=True)
    )
    return (down[:, None, :, None] * across[None, :, None, :]).reshape(grid * grid, *size)
