"""Penalties of an input gradient, phi(g) with g = dq/dx, and the two ways to differentiate them in the weights.

d phi / d theta = <u, dg / d theta> with u = d phi / d g. Double backprop differentiates g itself. The finite difference
(after Finlay and Oberman 2019, arXiv 1905.11468) holds the direction u constant and takes q's slope along it,
s = (q(x + h u / ||u||) - q(x)) / h = <u, g> / ||u|| up to O(h), from one more forward. For a squared norm it descends
c s^2, as they do, which is bounded below; for a form that is free of scale <u, g> = 0, and it descends ||u|| s. Both
report phi(g) itself.

Networks of ReLUs are piecewise linear: double backprop sees the pieces alone, the finite difference their edges too,
with a noise that grows as h falls. The two then agree on average at best.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from training.util.signatures import Predict

Method = Literal["double_backprop", "finite_difference"]
STEP = 0.05
TINY = 1e-24


class Probe(NamedTuple):
    """What is penalised: `form` (gradient (N, C, H, W) -> scalar) of the input gradient of `score`.

    `score` maps logits (N, K) to (N,), each entry by its own row. `degree`: phi(a g) = a^degree phi(g).
    """

    score: Callable[[Tensor], Tensor]
    form: Callable[[Tensor], Tensor]
    degree: Literal[0, 2] = 2


def gradient_penalty(probe: Probe, predict: Predict, x: Tensor, *, method: Method, h: float = STEP) -> Tensor:
    """The penalty (scalar) of pixels (N, C, H, W) in [0, 1]; differentiable in the weights of `predict`."""
    x = x.detach().requires_grad_(True)
    return penalise(probe, predict, x, predict(x), method=method, h=h)


def penalise(probe: Probe, predict: Predict, x: Tensor, logits: Tensor, *, method: Method, h: float = STEP) -> Tensor:
    """`gradient_penalty` where the logits of `x`, which requires a gradient, are known already.

    `h` is the L2 length of the finite difference, in pixels of [0, 1].
    """
    score = probe.score(logits)
    if method == "double_backprop":
        (gradient,) = torch.autograd.grad(score.sum(), x, create_graph=True)
        return probe.form(gradient)
    (gradient,) = torch.autograd.grad(score.sum(), x, retain_graph=True)
    gradient = gradient.detach().requires_grad_(True)
    value = probe.form(gradient)
    (direction,) = torch.autograd.grad(value, gradient)
    slope = (probe.score(predict(step_along(x, direction, h))) - score) / h
    pull = direction.flatten(1).norm(dim=1)
    if probe.degree == 2:
        expected = (direction * gradient.detach()).flatten(1).sum(1)
        pull = pull * pull * slope.detach() / expected.clamp_min(TINY)
    return value.detach() + (pull * (slope - slope.detach())).sum()


def step_along(x: Tensor, direction: Tensor, h: float) -> Tensor:
    """x plus a constant step of L2 length `h` along `direction` (no gradient flows through the direction)."""
    size = direction.flatten(1).norm(dim=1).clamp_min(1e-12)[:, None, None, None]
    return (x + h * direction / size).detach()


def squared_norm(gradient: Tensor) -> Tensor:
    """Sum of squares of each image's entries, (N,)."""
    return gradient.flatten(1).pow(2).sum(1)
