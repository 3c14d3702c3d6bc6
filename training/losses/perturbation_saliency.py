"""Perturbation saliency (Greydanus et al. 2018, arXiv 1711.00138): how much the logits move when one place is blurred.

P(p) = 1/2 || f(x) - f(x (1 - m_p) + blur(x) m_p) ||_2^2 with m_p a Gaussian bump at p, on a coarse grid.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from training.imaging.blur import gaussian_blur
from training.imaging.bumps import bumps
from training.util.signatures import Predict


@torch.no_grad()
def perturbation_saliency(predict: Predict, x: Tensor, *, grid: int = 8, sigma: float = 3.0) -> Tensor:
    """Saliency (N, grid, grid) of pixels (N, C, H, W): grid * grid forwards of the batch."""
    n, _, h, w = x.shape
    clean, blurred = predict(x), gaussian_blur(x, sigma)
    moved = [0.5 * (clean - predict(x + (blurred - x) * bump)).pow(2).sum(1) for bump in bumps(grid, (h, w), like=x)]
    return torch.stack(moved, 1).reshape(n, grid, grid)


def important_mask(saliency: Tensor, *, size: tuple[int, int], mass: float) -> Tensor:
    """M (N, H, W) in {0, 1}: the fewest pixels of the up-sampled saliency (N, h, w) that hold `mass` of its total."""
    up = F.interpolate(saliency[:, None], size=size, mode="bilinear", align_corners=False)[:, 0]
    flat = up.flatten(1)
    ordered, order = flat.sort(dim=1, descending=True)
    before = ordered.cumsum(1) - ordered
    keep = before < mass * flat.sum(1, keepdim=True)
    return torch.zeros_like(flat).scatter(1, order, keep.to(flat.dtype)).view_as(up)
