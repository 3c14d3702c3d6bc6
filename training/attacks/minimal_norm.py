"""The smallest L2 perturbation that fools a network by a given margin: DDN (Rony et al. 2019, arXiv 1811.09600).

The norm of the perturbation shrinks by a factor after every success and grows after every failure, while its direction
follows the gradient. A margin to be reached ("confidence", after Carlini and Wagner 2017, arXiv 1608.04644) keeps the
result away from the boundary, where any detector of small margins would find it.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from training.attacks.margin import margin
from training.attacks.pgd import direction
from training.util.signatures import Predict


def minimal_norm(
    predict: Predict,
    x: Tensor,
    y: Tensor,
    *,
    confidence: float = 0.0,
    steps: int = 100,
    norm: float = 1.0,
    factor: float = 0.05,
    refinements: int = 8,
) -> Tensor:
    """Adversarial images (N, C, H, W) in [0, 1] whose margin of `y` is at most -`confidence` logits, near to `x` in L2.

    An image for which none was found comes back as it was. `norm` is the first radius in pixels of [0, 1], `factor` the
    share by which it changes at each step; the step size falls from 1 to 0.01 as a cosine. At the end the best
    perturbation is shortened by bisection along its own line, `refinements` times. `predict` may search in lower
    precision: successes are judged without gradients.
    """
    if confidence < 0 or steps < 1 or norm <= 0:
        raise ValueError(f"confidence {confidence}, steps {steps}, norm {norm}: >= 0, >= 1 and > 0 are needed")
    delta, radius = torch.zeros_like(x), torch.full((len(x),), norm, device=x.device)
    best, shortest = torch.zeros_like(x), torch.full((len(x),), torch.inf, device=x.device)
    for step in range(steps + 1):
        adv = x + delta
        gradient, now = _slope(predict, adv, y)
        length = _norm(delta)
        suspects = (now <= -confidence) & (length < shortest)
        found = suspects & _reached(predict, adv, y, confidence, suspects)
        best, shortest = torch.where(_wide(found), delta, best), torch.where(found, length, shortest)
        radius = radius * torch.where(now <= -confidence, 1 - factor, 1 + factor)
        size = 0.01 + 0.99 * (1 + math.cos(math.pi * step / (steps + 1))) / 2
        delta = delta + size * direction(gradient, "l2")
        delta = delta * _wide(radius / _norm(delta).clamp_min(1e-12))
        delta = (x + delta).clamp(0, 1) - x
    return _shortened(predict, x, y, best, confidence, refinements)


def _slope(predict: Predict, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Gradient of log sum exp of the other logits minus that of `y`, and the margin (N,).

    Cross-entropy has the same direction, but no gradient left where an answer is sure; the margin's own gradient clings
    to one other class.
    """
    x = x.detach().requires_grad_(True)
    logits = predict(x).float()
    others = logits.scatter(1, y[:, None], -torch.inf).logsumexp(1)
    (gradient,) = torch.autograd.grad((others - logits.gather(1, y[:, None])[:, 0]).sum(), x)
    return gradient, margin(logits.detach(), y)


def _shortened(predict: Predict, x: Tensor, y: Tensor, delta: Tensor, confidence: float, times: int) -> Tensor:
    """x + t delta with the smallest t in [0, 1] that bisection finds to be a success."""
    low, high = torch.zeros(len(x), device=x.device), torch.ones(len(x), device=x.device)
    some = delta.flatten(1).any(1)
    for _ in range(times):
        middle = (low + high) / 2
        reached = _reached(predict, x + _wide(middle) * delta, y, confidence, some)
        low, high = torch.where(reached, low, middle), torch.where(reached, middle, high)
    return (x + _wide(high) * delta).clamp(0, 1)


def _reached(predict: Predict, adv: Tensor, y: Tensor, confidence: float, among: Tensor) -> Tensor:
    """Which of `among` (N,) bool have the margin, (N,) bool."""
    reached = torch.zeros_like(among)
    if among.any():
        with torch.no_grad():
            reached[among] = margin(predict(adv[among].clamp(0, 1)).float(), y[among]) <= -confidence
    return reached


def _norm(delta: Tensor) -> Tensor:
    return delta.flatten(1).norm(dim=1)


def _wide(column: Tensor) -> Tensor:
    return column[:, None, None, None]
