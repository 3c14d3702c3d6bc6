"""Neuron sensitivity by layer under attack, beside noise of equal norm (Zhang et al. 2019, arXiv 1909.06978)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from training.attacks.pgd import pgd
from training.losses.sns import neuron_sensitivity
from training.models.resnet import SmallResNet
from training.modes import frozen, seeded


def sensitivity_report(
    network: SmallResNet, x: Tensor, y: Tensor, *, eps: float, steps: int = 20, seed: int = 0
) -> list[dict[str, Any]]:
    """One row a layer: mean absolute and relative neuron sensitivity under PGD (Linf `eps`, of 1) and under noise.

    The noise has each image's own L2 perturbation norm, so that a ratio above 1 is adversarial.
    """
    with frozen(network):
        adversarial = pgd(network, x, y, eps=eps, steps=steps, generator=seeded(seed, 3))
        noise = torch.randn(x.shape, generator=seeded(seed, 4))
        size = (adversarial - x).flatten(1).norm(dim=1) / noise.flatten(1).norm(dim=1)
        noisy = (x + noise * size[:, None, None, None]).clamp(0, 1)
        with torch.no_grad():
            clean, attacked, control = (network.taps(z)[1] for z in (x, adversarial, noisy))
    rows = []
    for name in clean:
        row: dict[str, Any] = {"layer": name, "neurons": clean[name].shape[1]}
        for kind, relative in (("absolute", False), ("relative", True)):
            attack = neuron_sensitivity(clean, attacked, relative=relative)[name].mean().item()
            gaussian = neuron_sensitivity(clean, control, relative=relative)[name].mean().item()
            row |= {kind: attack, f"{kind}_gaussian": gaussian, f"{kind}_ratio": attack / max(gaussian, 1e-12)}
        rows.append(row)
    return rows
