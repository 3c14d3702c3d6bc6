"""Adversarial weight perturbation (Wu et al. 2020, arXiv 2004.05884).

It goes around the task losses of `training.loop.task_losses`.

The step is made with the gradient at w + v, v_l = gamma ||w_l|| g_l / ||g_l|| by layer, g the gradient of the task loss
on the images already attacked (equation 10 and Algorithm 1, one step). Biases and normalisations stay as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from training.util.distributed import average_
from training.util.module_modes import batchnorm_stats_kept


@contextmanager
def perturbed_weights(network: nn.Module, loss: Callable[[], Tensor], *, gamma: float) -> Iterator[None]:
    """Inside, the weights of `network` are moved to raise `loss`, of their norm by `gamma`; afterwards bit-identical.

    The scale of `loss` does not matter. Running statistics of BatchNorm do not move by its evaluation here.
    """
    weights = [p for p in network.parameters() if p.requires_grad and p.dim() > 1]
    with batchnorm_stats_kept(network):
        found = torch.autograd.grad(loss(), weights, allow_unused=True)
    gradients = [torch.zeros_like(w) if g is None else g for w, g in zip(weights, found, strict=True)]
    average_(gradients)
    before = [w.detach().clone() for w in weights]
    try:
        with torch.no_grad():
            for weight, gradient in zip(weights, gradients, strict=True):
                weight.add_(gradient * (gamma * weight.norm() / gradient.norm().clamp_min(1e-12)))
        yield
    finally:
        with torch.no_grad():
            for weight, kept in zip(weights, before, strict=True):
                weight.copy_(kept)
