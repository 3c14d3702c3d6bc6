"""The layer at which a network's decision turns: linear probes of every layer on a wrongly answered image.

A probe is a ridge regression from a layer's responses (averaged to 2x2) to one-hot labels, fitted on benign training
images (after Alain and Bengio 2016, arXiv 1610.01644). A layer has turned when its probe prefers the network's wrong
answer to the right one; the decision turns at the first layer after which all have.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.analysis.responses import responses
from training.util.module_modes import frozen

GRID = 2
RIDGE = 0.1
BATCH = 64


@dataclass(frozen=True)
class Probe:
    """Scores (N, K) = ((features - mean) / std) @ weight + prior."""

    mean: Tensor
    std: Tensor
    weight: Tensor
    prior: Tensor

    def __call__(self, features: Tensor) -> Tensor:
        return ((features - self.mean) / self.std) @ self.weight + self.prior


def fit_probes(network: nn.Module, x: Tensor, y: Tensor, *, classes: int) -> dict[str, Probe]:
    """One probe a layer, from benign images x (N, C, H, W) with labels y (N,)."""
    return {name: _ridge(features, y, classes) for name, features in pooled_responses(network, x).items()}


def _ridge(features: Tensor, y: Tensor, classes: int) -> Probe:
    mean, std = features.mean(0), features.std(0).clamp_min(1e-6)
    z, target = (features - mean) / std, F.one_hot(y, classes).to(features)
    prior = target.mean(0)
    gram = z.T @ z + RIDGE * len(z) * torch.eye(z.shape[1]).to(z)
    return Probe(mean, std, torch.linalg.solve(gram, z.T @ (target - prior)), prior)


@torch.no_grad()
def pooled_responses(network: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """Responses of every layer averaged to 2x2 (or as small as they are) and flattened: {layer: (N, F)}."""
    parts: dict[str, list[Tensor]] = {}
    with frozen(network):
        for batch in x.split(BATCH):
            for name, response in responses(network, batch)[1].items():
                parts.setdefault(name, []).append(pool(response))
    return {name: torch.cat(some) for name, some in parts.items()}


def pool(response: Tensor) -> Tensor:
    height, width = (min(GRID, size) for size in response.shape[2:])
    return F.adaptive_avg_pool2d(response, (height, width)).flatten(1)


def prefers(probes: dict[str, Probe], features: dict[str, Tensor], wrong: Tensor, right: Tensor) -> Tensor:
    """Whether each layer's probe puts the label `wrong` (N,) above `right` (N,): bool (N, L)."""
    rows = torch.arange(len(wrong))
    scores: Iterator[Tensor] = (probe(features[name]) for name, probe in probes.items())
    return torch.stack([s[rows, wrong] > s[rows, right] for s in scores], 1)


def turning_layer(turned: Tensor) -> Tensor:
    """Index (N,) of the first layer from which on all of turned (N, L) hold; L where the last one does not."""
    later = turned.flip(1).to(torch.int64).cumprod(1).sum(1)
    return turned.shape[1] - later
