"""The strict margin: what is left of a network's margin of a label after a short attack by ourselves.

Where an adversarial image lies just over the network's border, a small step leads back: its label does not stand a
short search against it, while those of benign images do.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from training.defence.scores.context import ScoreContext
from training.defence.scores.score import Score
from training.defence.signals.margins import one_hot_margin

RADIUS = 4 / 255
STEPS = 1  # as good as two on the select split (`studies.strict`), at half the price
_STRIDE = 0.75  # of the radius, where there is more than one step


class CompanionStrict(Score):
    """Minus the companion's strict margin of the served label; it costs two looks and a gradient of the companion."""

    name = "companion_strict"
    title = "Companion's strict margin"
    meaning = "How much the companion objects after a short attack of our own on it, which a benign answer stands."
    needs = frozenset({"companion", "gradient"})
    by_default = False
    system = "strict"

    def __call__(self, context: ScoreContext) -> Tensor:
        assert context.companion is not None
        return -strict_margin(context.companion, context.x, context.label)


def strict_margin(network: Callable[[Tensor], Tensor], x: Tensor, label: Tensor, *, steps: int = STEPS) -> Tensor:
    """Margin (N,) of the one-hot `label` (N, K) after `steps` signed gradient steps against it, within `RADIUS` (Linf).

    Differentiable in the pixels x (N, C, H, W) in [0, 1] with the perturbation held constant: almost everywhere that is
    the whole gradient, as the signs' is zero. Without steps it is the plain margin.
    """
    start = x.detach()
    moved, stride = start, RADIUS * (1.0 if steps == 1 else _STRIDE)
    for _ in range(steps):
        with torch.enable_grad():
            leaf = moved.detach().requires_grad_(True)
            (gradient,) = torch.autograd.grad(one_hot_margin(network(leaf), label).sum(), leaf)
        moved = moved - stride * gradient.sign()
        moved = torch.minimum(torch.maximum(moved, start - RADIUS), start + RADIUS).clamp(0, 1)
    return one_hot_margin(network(x + (moved - start)), label)
