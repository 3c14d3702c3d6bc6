"""Layer response analysis: which layers' attention an attack moves, beyond noise of equal statistics.

After Renkhoff et al. 2023 (arXiv 2303.06032): gradient heat maps of every convolution on clean, attacked and
Gaussian-noised images. Vulnerability of a layer, V = median deviation under attack / median deviation under noise.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from training.analysis.cam import METHODS, Maps, Score, heat_maps
from training.analysis.contrast import BATCH, KINDS, Triples, predictions, triples
from training.analysis.deviation import (
    centre_shift,
    map_deviation,
    response_deviation,
    top_overlap,
    vulnerability,
    vulnerability_interval,
)
from training.analysis.responses import responses
from training.analysis.turning import fit_probes, pool, prefers, turning_layer
from training.defence.signals.deviation import normalised as z_scores
from training.defence.signals.deviation import top_mean, view_change
from training.defence.signals.views import reference_views
from training.errors import TrainingError
from training.util.module_modes import frozen
from training.util.signatures import StepProgress, silent
from training.util.statistics import auroc, threshold_at

RATES = (0.01, 0.05)
UNDETERMINED = 1e4  # upper end of an interval of V


class LayerReport(NamedTuple):
    """JSON content, the images that it is about, and by layer which of them (N,) the attack moved more than noise did.

    The last compares the Grad-CAM of the label that each image gets.
    """

    content: dict[str, Any]
    images: Triples
    moved: dict[str, np.ndarray]


def layer_report(
    network: nn.Module,
    x: Tensor,
    y: Tensor,
    group: np.ndarray,
    *,
    fit: tuple[Tensor, Tensor],
    classes: int,
    eps: float,
    steps: int = 20,
    seed: int = 0,
    score: Score = "logit",
    progress: StepProgress = silent,
) -> LayerReport:
    """The analysis of one network on images x (N, C, H, W), labels y (N,), groups (N,).

    `fit` are benign training images and labels for the probes; `eps` is of 1. Heat maps are of the label that the
    network gives each input (`own_label`) and of the right one for all (`right_label`): an attack that changes the
    label changes what is explained, which alone moves a map; the second column has none of that.
    """
    found = triples(network, x, y, group, eps=eps, steps=steps, seed=seed, progress=progress)
    probes = fit_probes(network, *fit, classes=classes)
    collected: dict[str, list[np.ndarray]] = {}
    names: list[str] = []
    sizes: dict[str, tuple[int, int]] = {}
    for start in range(0, len(found), BATCH):
        progress("heat maps", start, len(found))
        part = slice(start, start + BATCH)
        measured, sizes = _measure(network, found, part, probes, score)
        names = list(sizes)
        for key, values in measured.items():
            collected.setdefault(key, []).append(values)
    table = {key: np.concatenate(values) for key, values in collected.items()}
    turning = {kind: turning_layer(torch.from_numpy(table[f"turned/{kind}"])).numpy() for kind in KINDS}
    moved = _moved(table, found.group, seed)
    rows: list[dict[str, Any]] = []
    for column, name in enumerate(names):
        row: dict[str, Any] = {"layer": name, "channels": sizes[name][0], "side": sizes[name][1]}
        for key, of_layers in moved.items():
            labels, _, method = key.partition("/")
            if method:
                row.setdefault(labels, {})[method] = of_layers[column]
            else:
                row[labels] = of_layers[column]
        row |= _layer_figures(table, column)
        row["turns_here"] = {kind: float((turning[kind] == column).mean()) for kind in KINDS}
        rows.append(row)
    gaussian = predictions(network, found.images["gaussian"])
    attacked, control = (table[f"own_label/grad_cam/{kind}"] for kind in KINDS[1:])
    content = {
        "images": found.attacked,
        "correct": found.correct,
        "fooled": len(found),
        "groups": len(np.unique(found.group)),
        "changed_by_noise": float((gaussian != found.right).float().mean()),
        "eps": round(eps * 255, 6),
        "steps": steps,
        "seed": seed,
        "score": score,
        "never_turns": {kind: float((turning[kind] == len(names)).mean()) for kind in KINDS},
        "layers": rows,
    }
    return LayerReport(content, found, dict(zip(names, (attacked > control).T, strict=True)))


def _measure(
    network: nn.Module, found: Triples, part: slice, probes: dict[str, Any], score: Score
) -> tuple[dict[str, np.ndarray], dict[str, tuple[int, int]]]:
    """Every quantity of some images as (n, L), by name; and channels and side of each layer."""
    right, wrong = found.right[part], found.wrong[part]
    out: dict[str, np.ndarray] = {}
    _, base, base_responses = heat_maps(network, found.images["clean"][part], right, score=score)
    out |= _energy("clean", base) | _turned("clean", probes, base_responses, wrong, right)
    for kind in KINDS[1:]:
        x = found.images[kind][part]
        own = predictions(network, x)
        _, maps, layers = heat_maps(network, x, own, score=score)
        _, held, _ = heat_maps(network, x, right, score=score)
        for labels, these in (("own_label", maps), ("right_label", held)):
            for method in METHODS:
                columns = [map_deviation(base[name][method], these[name][method]) for name in base]
                out[f"{labels}/{method}/{kind}"] = _columns(columns)
        out[f"response/{kind}"] = _columns([response_deviation(base_responses[n], layers[n]) for n in base])
        for key, measure in (("overlap", top_overlap), ("shift", centre_shift)):
            out[f"{key}/{kind}"] = _columns([measure(base[n]["grad_cam"], maps[n]["grad_cam"]) for n in base])
        out |= _energy(kind, maps) | _turned(kind, probes, layers, wrong, right)
    return out, {name: (a.shape[1], a.shape[2]) for name, a in base_responses.items()}


def _columns(values: Sequence[Tensor]) -> np.ndarray:
    return torch.stack(list(values), 1).cpu().numpy()


def _energy(kind: str, maps: Maps) -> dict[str, np.ndarray]:
    """Mean of NoiseCAM before any normalisation, which may reveal an attack without a reference."""
    return {f"energy/{kind}": _columns([m["noise_cam"].mean((1, 2)) for m in maps.values()])}


def _turned(
    kind: str, probes: dict[str, Any], layers: dict[str, Tensor], wrong: Tensor, right: Tensor
) -> dict[str, np.ndarray]:
    pooled = {name: pool(response) for name, response in layers.items()}
    return {f"turned/{kind}": prefers(probes, pooled, wrong, right).cpu().numpy()}


def _moved(table: dict[str, np.ndarray], group: np.ndarray, seed: int) -> dict[str, list[dict[str, Any]]]:
    """Medians, V and its interval of every layer, by measure; the same resamples of groups serve all of them."""
    keys = [f"{labels}/{method}" for labels in ("own_label", "right_label") for method in METHODS] + ["response"]
    attacked, control = (np.concatenate([table[f"{key}/{kind}"] for key in keys], 1) for kind in KINDS[1:])
    low, high = vulnerability_interval(attacked, control, group, seed=seed)
    columns = zip(
        np.median(attacked, 0), np.median(control, 0), vulnerability(attacked, control), low, high, strict=True
    )
    cells = [
        {"adversarial": float(a), "gaussian": float(g), "vulnerability": float(v), "interval": [float(lo), float(hi)]}
        for a, g, v, lo, hi in columns
    ]
    count = len(cells) // len(keys)
    return {key: cells[i * count : (i + 1) * count] for i, key in enumerate(keys)}


def _layer_figures(table: dict[str, np.ndarray], column: int) -> dict[str, Any]:
    """What one layer's maps and probe show: overlap, shift, turned, and attacks separated by NoiseCAM's energy."""
    row: dict[str, Any] = {
        key: {kind: float(np.median(table[f"{key}/{kind}"][:, column])) for kind in KINDS[1:]}
        for key in ("overlap", "shift")
    }
    row["turned"] = {kind: float(table[f"turned/{kind}"][:, column].mean()) for kind in KINDS}
    clean, *others = (table[f"energy/{kind}"][:, column] for kind in KINDS)
    cutoff = threshold_at(clean, 0.05)
    row["noise_cam_energy"] = {
        kind: {"auroc": auroc(clean, values), "above_0.05": float((values > cutoff).mean())}
        for kind, values in zip(KINDS[1:], others, strict=True)
    }
    return row


def vulnerable_layers(
    report: dict[str, Any], *, count: int = 2, method: str = "grad_cam", among: Sequence[str] | None = None
) -> list[str]:
    """The `count` layers with the largest V by `method`, in the network's order; `among` limits them (to taps).

    Layers whose V is not determined are left out: where maps are mostly empty its interval is unbounded.
    """
    cells = {
        row["layer"]: row["own_label"][method] for row in report["layers"] if among is None or row["layer"] in among
    }
    determined = {layer: cell["vulnerability"] for layer, cell in cells.items() if cell["interval"][1] <= UNDETERMINED}
    ranked = sorted(determined, key=lambda layer: -determined[layer])[:count]
    return [layer for layer in determined if layer in ranked]


@dataclass(frozen=True)
class Watch:
    """z-scores of every neuron's change over the reference views, {layer: (N, C)}: benign images', and by attack."""

    benign: dict[str, Tensor]
    attacked: dict[str, dict[str, Tensor]]

    @property
    def layers(self) -> list[str]:
        return list(self.benign)

    def scores(self, layers: Sequence[str], attack: str | None = None) -> np.ndarray:
        """The detector's score (N,) of the benign images or of an attack's, if it watched `layers`.

        The mean of the top tenth of the watched neurons' z-scores.
        """
        values = self.benign if attack is None else self.attacked[attack]
        return np.asarray(top_mean(torch.cat([values[layer] for layer in layers], 1)).cpu().numpy())

    def some(self, which: Mapping[str, np.ndarray]) -> Watch:
        """The attacks with only the images `which` (N,) bool; attacks without any are left out."""
        kept = {attack: torch.from_numpy(np.flatnonzero(chosen)) for attack, chosen in which.items() if chosen.any()}
        return Watch(
            self.benign,
            {a: {layer: z[index.to(z.device)] for layer, z in self.attacked[a].items()} for a, index in kept.items()},
        )


def watch(
    network: nn.Module,
    *,
    fit: Tensor,
    benign: Tensor,
    attacked: Mapping[str, Tensor],
    layers: Sequence[str] | None = None,
) -> Watch:
    """`fit` (benign images) gives means and deviations of neurons, `benign` are others; `attacked` images by attack.

    `layers` are those that can be watched (default: the network's taps, or every layer).
    """
    own = _view_changes(network, fit)
    watched = list(layers or getattr(network, "tap_channels", own))

    def z(images: Tensor) -> dict[str, Tensor]:
        changes = _view_changes(network, images)
        return {
            layer: z_scores(changes[layer], own[layer].mean(0), own[layer].std(0).clamp_min(1e-6)) for layer in watched
        }

    return Watch(z(benign), {name: z(images) for name, images in attacked.items()})


def layer_ablation(watched: Watch, chosen: Sequence[str], *, draws: int = 20, seed: int = 0) -> dict[str, Any]:
    """How well the deviation of neurons finds attacks when it watches chosen, all, the last, or random layers.

    Random sets have as many layers as `chosen`; `TrainingError` if one of those cannot be watched.
    """
    layers = watched.layers
    if unknown := set(chosen) - set(layers):
        raise TrainingError(f"no such layers: {', '.join(sorted(unknown))}; there are {', '.join(layers)}")

    def found(some: Sequence[str]) -> dict[str, dict[str, float]]:
        benign = watched.scores(some)
        return {name: _detected(benign, watched.scores(some, name)) for name in watched.attacked}

    rng = np.random.default_rng(seed)
    sets = [sorted(rng.choice(len(layers), len(chosen), replace=False)) for _ in range(draws)]
    drawn = [found([layers[i] for i in some]) for some in sets]
    random = {
        name: {key: _spread([one[name][key] for one in drawn]) for key in drawn[0][name]} for name in watched.attacked
    }
    return {
        "benign": len(watched.benign[layers[0]]),
        "attacked": {name: len(values[layers[0]]) for name, values in watched.attacked.items()},
        "chosen_layers": list(chosen),
        "draws": draws,
        "seed": seed,
        "chosen": found(list(chosen)),
        "all": found(layers),
        "last": found(layers[-1:]),
        "single": {layer: found([layer]) for layer in layers},
        "random": random,
    }


def _spread(values: list[float]) -> dict[str, float]:
    return {"mean": float(np.mean(values)), "min": min(values), "max": max(values)}


def _detected(benign: np.ndarray, attacked: np.ndarray) -> dict[str, float]:
    rates = {f"tpr_{rate:g}": float((attacked > threshold_at(benign, rate)).mean()) for rate in RATES}
    return {"auroc": auroc(benign, attacked) or 0.0} | rates


@torch.no_grad()
def _view_changes(network: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """Change of every neuron over the reference views, {layer: (N, C)}."""
    parts: dict[str, list[Tensor]] = {}
    with frozen(network):
        for batch in x.split(BATCH):
            own, views = responses(network, batch)[1], responses(network, reference_views(batch))[1]
            for name, response in own.items():
                parts.setdefault(name, []).append(view_change(response, views[name]))
    return {name: torch.cat(some) for name, some in parts.items()}
