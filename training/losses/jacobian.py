"""Jacobian norm (J of J-SIGR, Liu et al. 2022, arXiv 2207.13036), random projections (Hoffman et al. 2019, 1908.02729).

R_J = 1/2 mean_b ||J(x_b)||_F^2 with J = d logits / d pixels (K x D). The paper's full text could not be had; the
estimator is Hoffman et al.'s and the combination with the selective term is `training.losses.selective`.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Predict = Callable[[Tensor], Tensor]


def jacobian_penalty(
    predict: Predict, x: Tensor, *, projections: int = 1, generator: torch.Generator | None = None
) -> Tensor:
    """Unbiased estimate of R_J (scalar) by exact double backprop: K/2 mean ||d(v . f)/dx||^2, v uniform on the sphere.

    `predict` maps pixels (N, C, H, W) in [0, 1] to logits (N, K); the result is differentiable in its weights.
    """
    x = x.detach().requires_grad_(True)
    logits = predict(x)
    total = x.new_zeros(())
    for _ in range(projections):
        v = random_directions(logits, generator)
        (gradient,) = torch.autograd.grad((v * logits).sum(), x, create_graph=True)
        total = total + gradient.flatten(1).pow(2).sum(1).mean()
    return 0.5 * logits.shape[1] * total / projections


def jacobian_penalty_fd(
    predict: Predict, x: Tensor, *, h: float = 0.05, generator: torch.Generator | None = None
) -> Tensor:
    """R_J by a finite difference along one projected gradient (Finlay and Oberman 2019, arXiv 1905.11468).

    ||g|| = (v . f(x + h g/||g||) - v . f(x)) / h up to O(h); `h` is an L2 length in pixels of [0, 1].
    """
    x = x.detach().requires_grad_(True)
    logits = predict(x)
    v = random_directions(logits, generator)
    (gradient,) = torch.autograd.grad((v * logits).sum(), x, retain_graph=True)
    slope = ((v * predict(step_along(x, gradient, h))).sum(1) - (v * logits).sum(1)) / h
    return 0.5 * logits.shape[1] * slope.pow(2).mean()


def jacobian_norm(predict: Predict, x: Tensor) -> Tensor:
    """Exact 1/2 ||J(x_b)||_F^2 of each image, (N,): one backward pass for each of the K logits; for reports."""
    x = x.detach().requires_grad_(True)
    logits = predict(x)
    total = x.new_zeros(len(x))
    for k in range(logits.shape[1]):
        (gradient,) = torch.autograd.grad(logits[:, k].sum(), x, retain_graph=True)
        total = total + gradient.flatten(1).pow(2).sum(1)
    return 0.5 * total


def random_directions(logits: Tensor, generator: torch.Generator | None) -> Tensor:
    """One direction for each row of logits (N, K), uniform on the unit sphere of R^K."""
    v = torch.randn(logits.shape, generator=generator).to(logits)
    return v / v.norm(dim=1, keepdim=True).clamp_min(1e-12)


def step_along(x: Tensor, gradient: Tensor, h: float) -> Tensor:
    """x plus a constant step of L2 length `h` along `gradient` (no gradient flows through the direction)."""
    size = gradient.flatten(1).norm(dim=1).clamp_min(1e-12)[:, None, None, None]
    return (x + h * gradient / size).detach()
