"""Neuron sensitivity by layer under attack, beside noise of equal norm (Zhang et al. 2019, arXiv 1909.06978).

And what the most sensitive neurons are for: accuracy with them set to zero, beside as many random ones.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from training.analysis.responses import responses
from training.attacks.pgd import pgd
from training.errors import TrainingError
from training.losses.sns import channel_change, relative_change, select_sensitive
from training.models.network import Network
from training.models.probe import as_map
from training.util.module_modes import frozen, seeded

BATCH, RESAMPLES, LEVEL = 250, 500, 0.95
KINDS = ("absolute", "relative")
Layers = Literal["taps", "all"]


@dataclass(frozen=True)
class Changes:
    """Of one layer: mean absolute activation and mean absolute change of each neuron by image, (N, C)."""

    size: Tensor
    attack: Tensor
    gaussian: Tensor

    def sensitivity(self, weights: Tensor) -> dict[str, Tensor]:
        """NS of each neuron, (R, C), of images weighted by `weights` (R, N), whose rows sum to 1."""
        size, attack, gaussian = (weights @ part for part in (self.size, self.attack, self.gaussian))
        return {
            "absolute": attack,
            "absolute_gaussian": gaussian,
            "relative": relative_change(attack, size),
            "relative_gaussian": relative_change(gaussian, size),
        }


def sensitivity_study(
    network: Network,
    x: Tensor,
    y: Tensor,
    ranked_on: tuple[Tensor, Tensor],
    *,
    eps: float,
    steps: int = 20,
    seed: int = 0,
    group: np.ndarray | None = None,
    layers: Layers = "taps",
    top: int = 10,
    share: float = 0.1,
    draws: int = 10,
) -> dict[str, Any]:
    """JSON content: `sensitivity_report` of images with labels, and `masking_report` of neurons ranked on others."""
    other, labels = ranked_on
    attack = attacked(network, other, labels, eps=eps, steps=steps, seed=seed + 1)
    ranks = {name: of.attack.mean(0) for name, of in layer_changes(network, other, attack, attack).items()}
    adversarial = attacked(network, x, y, eps=eps, steps=steps, seed=seed)
    return {
        "layers": _rows(network, x, adversarial, seed=seed, group=group, layers=layers, top=top),
        "masking": masking_report(network, ranks, x, y, adversarial, share=share, draws=draws, seed=seed),
    }


def sensitivity_report(
    network: Network,
    x: Tensor,
    y: Tensor,
    *,
    eps: float,
    steps: int = 20,
    seed: int = 0,
    group: np.ndarray | None = None,
    layers: Layers = "taps",
    top: int = 10,
) -> list[dict[str, Any]]:
    """One row a layer: mean absolute and relative neuron sensitivity under PGD (Linf `eps`, of 1) and under noise.

    The noise has each image's own L2 perturbation norm, so that a ratio above 1 is adversarial. Intervals are 95 %
    bootstrap intervals over the groups of images (N,) (default: every image its own). `top` neurons of largest
    sensitivity are listed. `layers`: the network's taps, or the response of every convolution.
    """
    adversarial = attacked(network, x, y, eps=eps, steps=steps, seed=seed)
    return _rows(network, x, adversarial, seed=seed, group=group, layers=layers, top=top)


def attacked(network: nn.Module, x: Tensor, y: Tensor, *, eps: float, steps: int, seed: int) -> Tensor:
    """PGD examples (N, C, H, W) of the report."""
    with frozen(network):
        return pgd(network, x, y, eps=eps, steps=steps, generator=seeded(seed, 3))


@torch.no_grad()
def layer_changes(
    network: Network, x: Tensor, adversarial: Tensor, noisy: Tensor, *, layers: Layers = "taps"
) -> dict[str, Changes]:
    """How every neuron answers images, their adversarial examples and noisy versions, (N, C, H, W) each."""
    read: Callable[[Tensor], dict[str, Tensor]] = (
        (lambda z: network.taps(z)[1]) if layers == "taps" else (lambda z: responses(network, z)[1])
    )
    parts: dict[str, list[tuple[Tensor, ...]]] = {}
    with frozen(network):
        for batch in zip(x.split(BATCH), adversarial.split(BATCH), noisy.split(BATCH), strict=True):
            clean, attack, gaussian = (read(part) for part in batch)
            for name, activation in clean.items():
                others = torch.zeros_like(activation), attack[name], gaussian[name]
                parts.setdefault(name, []).append(tuple(channel_change(activation, other).cpu() for other in others))
    return {name: Changes(*(torch.cat(some) for some in zip(*of, strict=True))) for name, of in parts.items()}


def masking_report(
    network: Network,
    sensitivity: dict[str, Tensor],
    x: Tensor,
    y: Tensor,
    adversarial: Tensor,
    *,
    share: float = 0.1,
    draws: int = 10,
    seed: int = 0,
) -> dict[str, Any]:
    """Accuracy on images and on their adversarial examples with neurons of one tapped layer set to zero.

    `sensitivity` ranks the neurons of each layer, (C,), and should come from other images. The examples are those of
    the whole network: the question is through which neurons they act, not whether the rest can be attacked.
    """
    images = {"clean": x, "attacked": adversarial}
    rows = []
    with frozen(network):
        modules = tap_modules(network, x[:2])
        whole = {kind: _accuracy(network, z, y) for kind, z in images.items()}
        for name, chosen in select_sensitive(sensitivity, share=share).items():
            channels, generator = len(sensitivity[name]), seeded(seed, 5)
            drawn = [torch.randperm(channels, generator=generator)[: len(chosen)] for _ in range(draws)]
            row: dict[str, Any] = {"layer": name, "neurons": channels, "masked": len(chosen), "top": chosen.tolist()}
            for kind, z in images.items():
                accuracies = []
                for some in (chosen, *drawn):
                    with silenced(modules[name], some):
                        accuracies.append(_accuracy(network, z, y))
                sensitive, *random = accuracies
                row[kind] = {
                    "sensitive": sensitive,
                    "random": float(np.mean(random)),
                    "random_range": [min(random), max(random)],
                }
            rows.append(row)
    return {"images": len(x), "share": share, "draws": draws, "seed": seed, **whole, "layers": rows}


def tap_modules(network: Network, x: Tensor) -> dict[str, nn.Module]:
    """The module whose output each tapped layer is, by name; `TrainingError` where it is the output of none."""
    seen: list[tuple[nn.Module, Tensor]] = []

    def look(module: nn.Module, inputs: tuple[object, ...], output: object) -> None:
        made = as_map(output)
        if made is not None and not any(isinstance(z, Tensor) and _place(z) == _place(made) for z in inputs):
            seen.append((module, made))  # what hands its input on (identity, dropout) does not give it

    hooks = [module.register_forward_hook(look) for module in network.modules()]
    try:
        with torch.no_grad():
            taps = network.taps(x)[1]
    finally:
        for hook in hooks:
            hook.remove()
    found = {_place(output): module for module, output in seen}  # the outermost is the last
    places = {name: _place(tap) for name, tap in taps.items()}
    if missing := [name for name, pointer in places.items() if pointer not in found]:
        raise TrainingError(f"tapped layers that no module gives cannot be masked: {', '.join(missing)}")
    return {name: found[pointer] for name, pointer in places.items()}


def _place(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


@contextmanager
def silenced(module: nn.Module, channels: Tensor) -> Iterator[None]:
    """Set `channels` of the map that `module` gives to zero."""

    def hook(_module: nn.Module, _inputs: object, output: Tensor) -> Tensor:
        masked = output.clone()
        made = as_map(masked)
        assert made is not None
        made[:, channels] = 0.0
        return masked

    handle = module.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def _rows(
    network: Network,
    x: Tensor,
    adversarial: Tensor,
    *,
    seed: int,
    group: np.ndarray | None,
    layers: Layers,
    top: int,
) -> list[dict[str, Any]]:
    measured = layer_changes(network, x, adversarial, _gaussian(x, adversarial, seed), layers=layers)
    everyone = torch.full((1, len(x)), 1 / len(x))
    resamples = _resamples(np.arange(len(x)) if group is None else group, seed)
    return [
        {"layer": name, "neurons": changes.size.shape[1]}
        | _figures(changes.sensitivity(everyone), changes.sensitivity(resamples))
        | {"top": _top(changes.sensitivity(everyone), top)}
        for name, changes in measured.items()
    ]


def _gaussian(x: Tensor, adversarial: Tensor, seed: int) -> Tensor:
    noise = torch.randn(x.shape, generator=seeded(seed, 4)).to(x)
    size = (adversarial - x).flatten(1).norm(dim=1) / noise.flatten(1).norm(dim=1)
    return (x + noise * size[:, None, None, None]).clamp(0, 1)


def _resamples(group: np.ndarray, seed: int) -> Tensor:
    """Weights (R, N) of images whose groups are drawn with replacement."""
    names, index = np.unique(group, return_inverse=True)
    rng = np.random.default_rng(seed)
    drawn = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), RESAMPLES)
    weights = torch.from_numpy(drawn[:, index]).float()
    return weights / weights.sum(1, keepdim=True)


def _figures(found: dict[str, Tensor], resampled: dict[str, Tensor]) -> dict[str, Any]:
    """Means over neurons, their intervals, and the ratios of attack to noise."""
    row: dict[str, Any] = {}
    for kind in KINDS:
        for key in (kind, f"{kind}_gaussian"):
            row[key] = found[key].mean().item()
            row[f"{key}_interval"] = _interval(resampled[key].mean(1))
        row[f"{kind}_ratio"] = row[kind] / max(row[f"{kind}_gaussian"], 1e-12)
        ratios = resampled[kind].mean(1) / resampled[f"{kind}_gaussian"].mean(1).clamp_min(1e-12)
        row[f"{kind}_ratio_interval"] = _interval(ratios)
    return row


def _interval(values: Tensor) -> list[float]:
    ends = torch.tensor([(1 - LEVEL) / 2, (1 + LEVEL) / 2], dtype=values.dtype)
    return values.quantile(ends).tolist()


def _top(found: dict[str, Tensor], count: int) -> dict[str, list[dict[str, float]]]:
    """The `count` most sensitive neurons by either measure, ties to the lower index."""
    out = {}
    for kind in KINDS:
        order = torch.sort(found[kind][0], descending=True, stable=True).indices[:count].tolist()
        out[kind] = [{"neuron": i} | {key: values[0, i].item() for key, values in found.items()} for i in order]
    return out


@torch.no_grad()
def _accuracy(network: nn.Module, x: Tensor, y: Tensor) -> float:
    hits = torch.cat([network(part).argmax(1) for part in x.split(BATCH)]) == y
    return hits.float().mean().item()
