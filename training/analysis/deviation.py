"""How far a layer's behaviour moves between an image and another one, and how much of that the attack causes.

Renkhoff et al. 2023 (arXiv 2303.06032) set the heat maps of attacked images against those under Gaussian noise of
similar statistics. Their formula could not be had; the definitions here are ours.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

TINY = 1e-6
RESAMPLES = 1000


def map_deviation(a: Tensor, b: Tensor) -> Tensor:
    """D = 1 - cos(a, b) in [0, 1] of maps (N, h, w) >= 0, (N,); 0 where both are zero, 1 where one is."""
    a, b = a.flatten(1), b.flatten(1)
    size_a, size_b = a.norm(dim=1), b.norm(dim=1)
    cosine = F.cosine_similarity(a / size_a.clamp_min(1e-30)[:, None], b / size_b.clamp_min(1e-30)[:, None], eps=1e-12)
    return torch.where((size_a == 0) & (size_b == 0), torch.zeros_like(cosine), (1 - cosine).clamp(0, 1))


def response_deviation(a: Tensor, b: Tensor) -> Tensor:
    """||b - a|| / ||a|| of responses (N, C, h, w), (N,)."""
    return (b - a).flatten(1).norm(dim=1) / a.flatten(1).norm(dim=1).clamp_min(1e-12)


def top_overlap(a: Tensor, b: Tensor, *, share: float = 0.2) -> Tensor:
    """Intersection over union of the `share` largest entries of maps (N, h, w), at least one, (N,)."""
    a, b = a.flatten(1), b.flatten(1)
    k = max(1, round(share * a.shape[1]))
    top = [torch.zeros_like(m).scatter(1, m.topk(k, dim=1).indices, 1.0) for m in (a, b)]
    both = (top[0] * top[1]).sum(1)
    return both / (2 * k - both)


def centre_shift(a: Tensor, b: Tensor) -> Tensor:
    """Distance of the centres of mass of maps (N, h, w), as a share of the side, (N,); zero maps are centred."""
    return (_centre(a) - _centre(b)).norm(dim=1)


def _centre(maps: Tensor) -> Tensor:
    n, h, w = maps.shape
    mass = maps.sum((1, 2))
    flat = torch.where((mass > 0)[:, None, None], maps, torch.ones_like(maps))
    total = flat.sum((1, 2))
    rows, columns = ((torch.arange(side).to(maps) + 0.5) / side for side in (h, w))
    return torch.stack([(flat.sum(2) * rows).sum(1) / total, (flat.sum(1) * columns).sum(1) / total], 1).view(n, 2)


def vulnerability(attacked: np.ndarray, control: np.ndarray) -> np.ndarray:
    """V = median deviation under attack over that under noise, (L,), of deviations (n, L); 1 where neither moves."""
    return np.asarray((np.median(attacked, axis=0) + TINY) / (np.median(control, axis=0) + TINY))


def vulnerability_interval(
    attacked: np.ndarray, control: np.ndarray, group: np.ndarray, *, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """95 % bootstrap interval (L,), (L,) of `vulnerability`: whole groups (n,) are drawn, pairs stay pairs."""
    _, index = np.unique(group, return_inverse=True)
    members = [np.flatnonzero(index == i) for i in range(index.max() + 1)]
    rng = np.random.default_rng(seed)
    values = np.empty((RESAMPLES, attacked.shape[1]))
    for draw in range(RESAMPLES):
        chosen = np.concatenate([members[i] for i in rng.integers(0, len(members), len(members))])
        values[draw] = vulnerability(attacked[chosen], control[chosen])
    low, high = np.quantile(values, [0.025, 0.975], axis=0)
    return low, high
