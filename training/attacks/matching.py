"""Feature and logit matching: make an image's activations those of another class, so that they look natural.

A detector of unusual activations sees nothing unusual then (Sabour et al. 2016, arXiv 1511.05122; the attack that broke
several detectors in Tramer et al. 2020, arXiv 2002.08347).
"""

from __future__ import annotations

import math
from typing import Protocol

import torch
from torch import Tensor

from training.attacks.pgd import project
from training.util.signatures import Predict


class Tapped(Protocol):
    """A network whose activations can be read."""

    def taps(self, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]: ...


def match_features(
    network: Tapped, x: Tensor, target: Tensor, *, eps: float, steps: int = 100, step_size: float | None = None
) -> Tensor:
    """Images within `eps` (Linf) whose pooled last features (N, F) are as near to `target` (N, F) as was found."""
    return _match(lambda z: pooled_features(network, z), x, target, eps=eps, steps=steps, step_size=step_size)


def match_logits(
    predict: Predict, x: Tensor, target: Tensor, *, eps: float, steps: int = 100, step_size: float | None = None
) -> Tensor:
    """Images within `eps` (Linf) whose logits (N, K) are as near to `target` (N, K) as was found."""
    return _match(predict, x, target, eps=eps, steps=steps, step_size=step_size)


def pooled_features(network: Tapped, x: Tensor) -> Tensor:
    """Spatial means (N, F) of the last tapped activation: what the head of a network with global pooling sees."""
    activation: Tensor = list(network.taps(x)[1].values())[-1]
    return activation.mean((2, 3))


def nearest_other(features: Tensor, guides: Tensor, classes: Tensor, y: Tensor) -> Tensor:
    """For each of `features` (N, F) the nearest row of `guides` (M, F) whose class (`classes`, (M,)) is not `y` (N,).

    Guides are features (or logits) of images that the network answers rightly, or class means.
    """
    distance = torch.cdist(features, guides).masked_fill(classes[None] == y[:, None], torch.inf)
    return guides[distance.argmin(1)]


def _match(
    function: Predict,
    x: Tensor,
    target: Tensor,
    *,
    eps: float,
    steps: int,
    step_size: float | None,
) -> Tensor:
    """Signed descent on ||function(x) - target||^2 from `x`; the nearest iterate.

    Steps are `step_size` (2.5 eps / steps) in the mean, and fall as a cosine.
    """
    if eps < 0 or steps < 1:
        raise ValueError(f"eps {eps}, steps {steps}: eps >= 0, steps >= 1 are needed")
    alpha = 2.5 * eps / steps if step_size is None else step_size
    best, nearest = x.clone(), torch.full((len(x),), torch.inf, device=x.device)
    adv = x.clone()
    for step in range(steps + 1):
        adv.requires_grad_(True)
        distance = (function(adv).float() - target).pow(2).sum(1)
        (gradient,) = torch.autograd.grad(distance.sum(), adv)
        adv, distance = adv.detach(), distance.detach()
        better = distance < nearest
        best = torch.where(better[:, None, None, None], adv, best)
        nearest = torch.where(better, distance, nearest)
        if step < steps:
            length = alpha * (1 + math.cos(math.pi * step / steps))
            adv = project(adv - length * gradient.sign(), x, eps, "linf")
    return best
