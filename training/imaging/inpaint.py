"""Inpainting by pull-push: normalised averages down a pyramid, then fill the holes on the way up.

Normalised convolution (Knutsson and Westin 1993) on an image pyramid: every level is the mean of the known pixels of
the level below, so that a hole of any size is filled from its surroundings in log2(side) steps, at any resolution.
Large images are filled at `working_size` and only the result is carried up to the pixels.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from training.imaging.resize import area_average, double_nearest, resize_bilinear, smoothed, working_size

_WHOLE = 1 - 1e-4  # of a cell's pixels, below which it counts as hidden in part (weights are rounded)


def inpaint(pixels: Tensor, mask: Tensor, *, smooth: int = 2) -> Tensor:
    """Fill `pixels` (N, C, H, W) where `mask` (N, H, W) is above 0.5; all other pixels are returned bit-identical.

    `smooth` is the number of 3x3 averaging passes over the filled region. Differentiable in `pixels`.
    """
    hole = mask[:, None] > 0.5
    known = (~hole).to(pixels.dtype)
    size, cells = (int(pixels.shape[2]), int(pixels.shape[3])), working_size(*pixels.shape[2:])
    weight = area_average(known, cells)
    filled = _pull_push(area_average(pixels * known, cells), weight)
    hidden = weight < _WHOLE
    for _ in range(smooth):
        filled = torch.where(hidden, smoothed(filled), filled)
    return torch.where(hole, filled if cells == size else resize_bilinear(filled, size), pixels)


def _pull_push(value: Tensor, weight: Tensor) -> Tensor:
    """Known values times weight (N, C, H, W) and weights (N, 1, H, W) -> an image without holes."""
    if max(value.shape[2], value.shape[3]) <= 1:
        return value / weight.clamp_min(1e-6)
    pad_h, pad_w = value.shape[2] % 2, value.shape[3] % 2
    if pad_h or pad_w:
        value = F.pad(value, (0, pad_w, 0, pad_h))
        weight = F.pad(weight, (0, pad_w, 0, pad_h))
    coarse_weight = F.avg_pool2d(weight, 2)
    coarse = _pull_push(F.avg_pool2d(value, 2), coarse_weight)
    above = double_nearest(coarse)
    blended = value + (1 - weight.clamp(0, 1)) * above
    return blended[:, :, : value.shape[2] - pad_h, : value.shape[3] - pad_w]
