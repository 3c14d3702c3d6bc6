"""Gaussian blur of a batch of images."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from training.imaging.resize import area_average, resize_bilinear, working_size


def gaussian_blur(x: Tensor, sigma: float) -> Tensor:
    """Gaussian blur of (N, C, H, W) with replicated borders; `sigma` in pixels."""
    radius = max(1, round(3 * sigma))
    t = torch.arange(-radius, radius + 1, dtype=x.dtype, device=x.device)
    kernel = torch.exp(-(t**2) / (2 * sigma**2))
    kernel = kernel / kernel.sum()
    c = x.shape[1]
    x = F.conv2d(
        F.pad(x, (radius, radius, 0, 0), mode="replicate"), kernel.view(1, 1, 1, -1).repeat(c, 1, 1, 1), groups=c
    )
    return F.conv2d(
        F.pad(x, (0, 0, radius, radius), mode="replicate"), kernel.view(1, 1, -1, 1).repeat(c, 1, 1, 1), groups=c
    )


def broad_blur(x: Tensor, share: float) -> Tensor:
    """Gaussian blur of (N, C, H, W) with a deviation of `share` of the shorter side, at a cost that grows as H x W.

    Of images of 96 pixels and more it is computed at `working_size` and carried up bilinearly.
    """
    size, cells = (int(x.shape[2]), int(x.shape[3])), working_size(*x.shape[2:])
    if cells == size:
        return gaussian_blur(x, share * min(size))
    return resize_bilinear(gaussian_blur(area_average(x, cells), share * min(cells)), size)
