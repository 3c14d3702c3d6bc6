"""Sensitive-neuron stabilising (Zhang et al. 2019, arXiv 1909.06978).

Neuron sensitivity NS(l, m) = mean_i 1/dim ||F_l^m(x_i) - F_l^m(x'_i)||_1 over pairs of a benign and an adversarial
image; a neuron of a convolution is a channel. The printed penalty shrinks with the features; the relative form here
divides by the live mean activation of the clean branch and is scale-invariant.
"""

from __future__ import annotations

import torch
from torch import Tensor

from training.util.distributed import batch_mean

Taps = dict[str, Tensor]


def channel_change(clean: Tensor, other: Tensor) -> Tensor:
    """Mean absolute change of each neuron, (N, C), of activations (N, C, H, W) or (N, C)."""
    difference = (clean - other).abs()
    return difference.flatten(2).mean(2) if difference.dim() > 2 else difference


def neuron_sensitivity(clean: Taps, other: Taps, *, relative: bool = False) -> Taps:
    """NS by layer, {name: (C,)}; `relative` divides by a neuron's mean absolute clean activation (dead neurons: 1)."""
    out = {}
    for name, activation in clean.items():
        change = channel_change(activation, other[name]).mean(0)
        if relative:
            change = relative_change(change, channel_change(activation, torch.zeros_like(activation)).mean(0))
        out[name] = change
    return out


def relative_change(change: Tensor, size: Tensor) -> Tensor:
    """Mean change of neurons over their mean absolute clean activation `size`; 1 where that is 0 (dead neurons)."""
    return torch.where(size > 1e-8, change / size.clamp_min(1e-8), torch.ones_like(change))


def select_sensitive(sensitivity: Taps, *, share: float = 0.1) -> dict[str, Tensor]:
    """The `share` most sensitive neurons of each layer (at least one), ascending; ties go to the lower index."""
    chosen = {}
    for name, value in sensitivity.items():
        k = max(1, round(share * len(value)))
        order = torch.sort(value, descending=True, stable=True).indices
        chosen[name] = order[:k].sort().values
    return chosen


def sns_penalty(clean: Taps, adversarial: Taps, sensitive: dict[str, Tensor], *, relative: bool = True) -> Tensor:
    """Mean over layers of the (relative) change of the sensitive neurons; neither branch is detached."""
    terms = []
    for name, index in sensitive.items():
        a, b = clean[name][:, index], adversarial[name][:, index]
        change = batch_mean((a - b).abs().mean())
        terms.append(change / batch_mean(a.abs().mean()).clamp_min(1e-8) if relative else change)
    return torch.stack(terms).mean()
