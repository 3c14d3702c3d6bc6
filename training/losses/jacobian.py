"""Jacobian norm (J of J-SIGR, Liu et al. 2022, arXiv 2207.13036), random projections (Hoffman et al. 2019, 1908.02729).

R_J = 1/2 mean_b ||J(x_b)||_F^2 with J = d logits / d pixels (K x D). The paper's full text could not be had; the
estimator is Hoffman et al.'s and the combination with the selective term is `training.losses.selective`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from training.losses.input_gradient import Probe, squared_norm
from training.util.random_draws import normal
from training.util.signatures import Predict


def jacobian_probe(logits: Tensor, generator: torch.Generator | None) -> Probe:
    """Unbiased estimate of R_J: K/2 mean ||d(v . f)/dx||^2, one v by image, uniform on the unit sphere of R^K.

    `logits` (N, K) are of the images that will be penalised; only their shape and device are used.
    """
    v, classes = random_directions(logits, generator), logits.shape[1]
    return Probe(lambda z: (v * z).sum(1), lambda gradient: 0.5 * classes * squared_norm(gradient).mean())


def jacobian_norm(predict: Predict, x: Tensor) -> Tensor:
    """Exact 1/2 ||J(x_b)||_F^2 of each image, (N,): one backward pass for each of the K logits; for reports."""
    x = x.detach().requires_grad_(True)
    logits = predict(x)
    total = x.new_zeros(len(x))
    for k in range(logits.shape[1]):
        (gradient,) = torch.autograd.grad(logits[:, k].sum(), x, retain_graph=True)
        total = total + squared_norm(gradient)
    return 0.5 * total


def random_directions(logits: Tensor, generator: torch.Generator | None) -> Tensor:
    """One direction for each row of logits (N, K), uniform on the unit sphere of R^K."""
    v = normal(logits.shape, generator).to(logits)
    return v / v.norm(dim=1, keepdim=True).clamp_min(1e-12)
