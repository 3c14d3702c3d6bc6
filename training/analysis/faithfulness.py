"""Whether a map shows what an answer depends on: deletion, insertion, pointing, randomised weights, small noise."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Literal

import numpy as np
import torch
from scipy.stats import rankdata
from torch import Tensor, nn

from training.imaging.blur import broad_blur
from training.models.network import Network
from training.util.module_modes import frozen

Baseline = Literal["blur", "mean"]
BATCH = 256


def without_detail(x: Tensor, baseline: Baseline) -> Tensor:
    """What deleted pixels become: the image blurred by an eighth of its side, or its mean colour."""
    if baseline == "mean":
        return x.mean((2, 3), keepdim=True).expand_as(x)
    return broad_blur(x, 1 / 8)


def ranks(maps: Tensor, generator: torch.Generator) -> Tensor:
    """Rank of each pixel of maps (N, H, W), the largest first, (N, H W); ties are broken at random."""
    flat = maps.flatten(1)
    shuffle = torch.randperm(flat.shape[1], generator=generator).to(flat.device)
    order = shuffle[flat[:, shuffle].sort(dim=1, descending=True, stable=True).indices]
    return torch.zeros_like(order).scatter(1, order, torch.arange(flat.shape[1]).to(order).expand_as(order))


@torch.no_grad()
def deletion_insertion(
    network: nn.Module,
    x: Tensor,
    label: Tensor,
    maps: Tensor,
    *,
    baseline: Baseline = "blur",
    steps: int = 16,
    generator: torch.Generator,
) -> tuple[np.ndarray, np.ndarray]:
    """Areas (N,), (N,) under the probability of `label` while the largest pixels go first, and while they come first.

    Petsiuk et al. 2018 (RISE, arXiv 1806.07421). A good map has a small first and a large second area.
    """
    rank, plain = ranks(maps, generator).view(len(x), 1, *x.shape[2:]), without_detail(x, baseline)
    pixels = x.shape[2] * x.shape[3]
    curves = torch.zeros(2, steps + 1, len(x))
    with frozen(network):
        for step in range(steps + 1):
            first = rank < round(step * pixels / steps)
            for row, image in enumerate((torch.where(first, plain, x), torch.where(first, x, plain))):
                logits = torch.cat([network(part) for part in image.split(BATCH)])
                curves[row, step] = logits.softmax(1).gather(1, label[:, None])[:, 0].cpu()
    deletion, insertion = torch.trapezoid(curves, dx=1 / steps, dim=1).numpy()
    return deletion, insertion


def share_inside(maps: Tensor, region: Tensor) -> np.ndarray:
    """Share (N,) of each map's positive part (N, H, W) inside a region {0, 1} (N, H, W); an empty map counts 0."""
    positive = maps.clamp_min(0).flatten(1)
    inside = (positive * region.flatten(1)).sum(1)
    return (inside / positive.sum(1).clamp_min(1e-30)).cpu().numpy()


def points_inside(maps: Tensor, region: Tensor) -> np.ndarray:
    """Whether each map's largest pixel lies in the region, (N,): the pointing game (Zhang et al. 2016, 1608.00507)."""
    top = maps.flatten(1).argmax(1, keepdim=True)
    return region.flatten(1).gather(1, top)[:, 0].bool().cpu().numpy()


def centre_disc(height: int, width: int, *, radius: float = 0.35) -> Tensor:
    """{0, 1} (H, W): the disc about the centre with `radius` of the shorter side."""
    rows, columns = torch.arange(height) - (height - 1) / 2, torch.arange(width) - (width - 1) / 2
    return (rows[:, None] ** 2 + columns[None] ** 2 <= (radius * min(height, width)) ** 2).float()


def rank_correlation(a: Tensor, b: Tensor) -> np.ndarray:
    """Spearman's rank correlation (N,) of maps (N, H, W); 0 where one of them is constant."""
    first, second = (rankdata(m.flatten(1).cpu().numpy(), axis=1) for m in (a, b))
    first, second = (r - r.mean(1, keepdims=True) for r in (first, second))
    size = np.sqrt((first**2).sum(1) * (second**2).sum(1))
    return np.asarray(np.where(size > 0, (first * second).sum(1) / np.maximum(size, 1e-12), 0.0))


def cascading_randomisation(
    network: Network, explain: Callable[[Network], Tensor], *, seed: int
) -> list[tuple[str, np.ndarray]]:
    """Rank correlation (N,) with the map of the trained network as its layers lose their weights from the top down.

    Adebayo et al. 2018 (arXiv 1810.03292). One entry for each of the network's own parts (head, stages, stem), which
    are reset one after another; a map that hardly changes does not show what the network has learnt.
    """
    original, wrecked = explain(network), copy.deepcopy(network)
    rows = []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for name, part in reversed(_parts(wrecked)):
            for module in part.modules():
                reset = getattr(module, "reset_parameters", None)
                if callable(reset):
                    reset()
            rows.append((name, rank_correlation(original, explain(wrecked))))
    return rows


def _parts(network: nn.Module) -> list[tuple[str, nn.Module]]:
    """Children with parameters, lists and dictionaries of modules opened, in order."""
    parts: list[tuple[str, nn.Module]] = []
    for name, child in network.named_children():
        if isinstance(child, nn.ModuleList | nn.ModuleDict):
            parts += [(f"{name}.{inner}", module) for inner, module in _parts(child)]
        elif next(child.parameters(), None) is not None:
            parts.append((name, child))
    return parts
