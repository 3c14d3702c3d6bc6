"""Perturbation saliency (Greydanus et al. 2018, arXiv 1711.00138): how much the logits move when one place is blurred.

P(p) = 1/2 || f(x) - f(x (1 - m_p) + blur(x) m_p) ||_2^2 with m_p a Gaussian bump at p, on a coarse grid.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from training.imaging.blur import gaussian_blur
from training.util.signatures import Predict


@torch.no_grad()
def perturbation_saliency(predict: Predict, x: Tensor, *, grid: int = 8, sigma: float = 3.0) -> Tensor:
    """Saliency (N, grid, grid) of pixels (N, C, H, W): grid * grid forwards of the batch."""
    n, _, h, w = x.shape
    clean, blurred = predict(x), gaussian_blur(x, sigma)
    rows, columns = (torch.arange(extent, dtype=x.dtype, device=x.device) for extent in (h, w))
    radius = 0.5 * max(h, w) / grid
    out = x.new_zeros(n, grid, grid)
    for i in range(grid):
        for j in range(grid):
            cy, cx = (i + 0.5) * h / grid - 0.5, (j + 0.5) * w / grid - 0.5
            bump = torch.exp(-((rows - cy)[:, None] ** 2 + (columns - cx)[None] ** 2) / (2 * radius**2))
            out[:, i, j] = 0.5 * (clean - predict(x + (blurred - x) * bump)).pow(2).sum(1)
    return out


def important_mask(saliency: Tensor, *, size: tuple[int, int], mass: float) -> Tensor:
    """M (N, H, W) in {0, 1}: the fewest pixels of the up-sampled saliency (N, h, w) that hold `mass` of its total."""
    up = F.interpolate(saliency[:, None], size=size, mode="bilinear", align_corners=False)[:, 0]
    flat = up.flatten(1)
    ordered, order = flat.sort(dim=1, descending=True)
    before = ordered.cumsum(1) - ordered
    keep = before < mass * flat.sum(1, keepdim=True)
    return torch.zeros_like(flat).scatter(1, order, keep.to(flat.dtype)).view_as(up)
