"""Adversarial training against patches: content that is optimised within outlines at the worst of a few places.

Rao et al. 2020 (arXiv 2005.02313) and Wu et al. 2020 (arXiv 1909.09552): the content of a patch is optimised by a few
signed steps from random colours, its place by trying some. Here outlines are squares of the card's patches, strips,
oblongs and pairs, and content is noisy or smooth.
"""

from __future__ import annotations

import torch
from torch import Generator, Tensor

from training.attacks.margin import margin
from training.attacks.obstacles import turned, uniform, worst_of
from training.attacks.patch import patch_side
from training.attacks.shapes import CELLS, Shapes
from training.loop.obstacles import outline, with_obstacles
from training.recipes.training import WorstPatches
from training.util import random_draws
from training.util.signatures import Predict

_SQUARES = 0.5
_SMOOTH = 0.3


def with_worst_patches(
    predict: Predict, x: Tensor, y: Tensor, settings: WorstPatches, *, rows: Tensor, generator: Generator
) -> Tensor:
    """Images (N, C, H, W) in [0, 1] with labels `y` (N,), those of `rows` (M,) under an optimised patch.

    Half of the patches are squares, the others strips, oblongs, smaller squares and pairs. Three batches in ten have
    smooth content. `predict` maps pixels to logits with the network in evaluation mode.
    """
    if len(rows) == 0:
        return x
    some, label = x[rows], y[rows]
    smooth = float(torch.rand((), generator=generator)) < _SMOOTH
    cells = (CELLS, CELLS) if smooth else tuple(x.shape[2:])
    best, lowest = None, torch.full((len(rows),), torch.inf, device=x.device)
    for _ in range(settings.places):
        cover = Shapes(uniform(some, (x.shape[1], *cells), 0, 1, generator), _shown(some, generator))
        with torch.no_grad():
            now = margin(predict(cover.on(some)).float(), label)
        best = cover if best is None else cover.where(now < lowest, best)
        lowest = torch.minimum(now, lowest)
    assert best is not None  # there is at least one place
    for _ in range(settings.steps):
        colours = best.colours.requires_grad_(True)
        (gradient,) = torch.autograd.grad(margin(predict(best.painted(colours).on(some)).float(), label).sum(), colours)
        best = best.painted((colours.detach() - settings.step_size * gradient.sign()).clamp(0, 1))
    made = x.clone()
    made[rows] = best.on(some)
    return made


def with_worst_obstacles(
    predict: Predict, x: Tensor, y: Tensor, *, tries: int, rows: Tensor, generator: Generator
) -> Tensor:
    """The same with an obstacle (`training.loop.obstacles`) on those of `rows` (M,): the worst of `tries` draws."""
    if len(rows) == 0:
        return x
    made = x.clone()
    made[rows] = worst_of(
        predict, x[rows], y[rows], lambda some, drawn: with_obstacles(some, drawn, fraction=1.0), tries, generator
    )
    return made


def _shown(x: Tensor, generator: Generator) -> Tensor:
    side = patch_side(x.shape[2])
    square = random_draws.uniform((len(x), 1, 1), generator).to(x.device) < _SQUARES
    return torch.where(square, turned(x, side, side, generator), outline(x, generator))
