"""Adversarial patches: a square whose pixels are free, placed where it hurts (Brown et al. 2017, arXiv 1712.09665).

Location-optimised: several random places are tried for a few steps, the best one is worked on to the end.
"""

from __future__ import annotations

import torch
from torch import Tensor

from training.attacks.margin import margin
from training.attacks.pgd import Predict


def patch_attack(
    predict: Predict,
    x: Tensor,
    y: Tensor,
    *,
    side: int,
    places: int = 6,
    probe_steps: int = 8,
    steps: int = 50,
    step_size: float = 0.1,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor]:
    """Patched images (N, C, H, W) and the patches' masks {0, 1} (N, H, W). `side` is the patch's side in pixels."""
    n, _, h, w = x.shape
    best_margin, best_mask, best_patch = torch.full((n,), torch.inf), torch.zeros(n, h, w), x.clone()
    for _ in range(places):
        mask = _random_squares(n, h, w, side, generator)
        patch = torch.rand(x.shape, generator=generator)
        patch, reached = _optimise(predict, x, y, mask, patch, steps=probe_steps, step_size=step_size)
        better = reached < best_margin
        best_margin = torch.where(better, reached, best_margin)
        best_mask = torch.where(better[:, None, None], mask, best_mask)
        best_patch = torch.where(better[:, None, None, None], patch, best_patch)
    best_patch, _ = _optimise(predict, x, y, best_mask, best_patch, steps=steps, step_size=step_size / 2)
    return _apply(x, best_patch, best_mask), best_mask


def _optimise(
    predict: Predict, x: Tensor, y: Tensor, mask: Tensor, patch: Tensor, *, steps: int, step_size: float
) -> tuple[Tensor, Tensor]:
    """Signed gradient descent on the margin; returns the best patch seen and its margin."""
    best, best_margin = patch, torch.full((len(x),), torch.inf)
    for _ in range(steps + 1):
        patch = patch.detach().requires_grad_(True)
        now = margin(predict(_apply(x, patch, mask)), y)
        (gradient,) = torch.autograd.grad(now.sum(), patch)
        better = now.detach() < best_margin
        best = torch.where(better[:, None, None, None], patch.detach(), best)
        best_margin = torch.where(better, now.detach(), best_margin)
        patch = (patch.detach() - step_size * gradient.sign()).clamp(0, 1)
    return best, best_margin


def _apply(x: Tensor, patch: Tensor, mask: Tensor) -> Tensor:
    return torch.where(mask[:, None] > 0.5, patch, x)


def _random_squares(n: int, h: int, w: int, side: int, generator: torch.Generator | None) -> Tensor:
    top = torch.randint(0, h - side + 1, (n, 1), generator=generator)
    left = torch.randint(0, w - side + 1, (n, 1), generator=generator)
    rows, columns = torch.arange(h), torch.arange(w)
    inside_rows = (rows >= top) & (rows < top + side)
    inside_columns = (columns >= left) & (columns < left + side)
    return (inside_rows[:, :, None] & inside_columns[:, None, :]).float()
