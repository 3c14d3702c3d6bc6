"""Deviation of neurons between an input and its reference views: online neuron sensitivity, benign-normalised.

Offline, sensitivity is a property of a benign/adversarial pair (Zhang et al. 2019, arXiv 1909.06978); online the pair
is the input and a view that leaves its content alone. Adversarial features are brittle, so their neurons move more.
"""

from __future__ import annotations

import torch
from torch import Tensor

TOP_SHARE = 0.1


def view_change(activation: Tensor, views: Tensor) -> Tensor:
    """Mean absolute change of each neuron's spatial mean over the views, (N, C).

    activation (N, C, h, w) of the input, views (V N, C, h, w) view-major. Spatial means are compared because the views
    are shifts: an equivariant feature map moves, its mean stays.
    """
    own = activation.mean((2, 3))
    others = views.mean((2, 3)).reshape(-1, own.shape[0], own.shape[1])
    return (others - own).abs().mean(0)


def normalised(change: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """z-scores (N, C) of changes against benign mean and std (C,)."""
    return (change - mean) / std


def top_mean(z: Tensor, share: float = TOP_SHARE) -> Tensor:
    """Mean of the `share` largest entries of each row of z (N, C), at least one: (N,)."""
    return torch.topk(z, max(1, round(share * z.shape[1])), dim=1).values.mean(1)
