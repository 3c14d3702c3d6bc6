"""How good a bundle's explanations are, beside captum's and a random map, with n, seed and bootstrap intervals."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from training.analysis.attribution import (
    IG_STEPS,
    Explain,
    batched,
    captum_grad_cam,
    integrated_gradients,
    last_layer_map,
    margin_saliency,
)
from training.analysis.contrast import predictions
from training.analysis.deviation import top_overlap
from training.analysis.faithfulness import (
    Baseline,
    cascading_randomisation,
    centre_disc,
    deletion_insertion,
    points_inside,
    rank_correlation,
    share_inside,
)
from training.attacks.coarse import searched
from training.attacks.patch import patch_attack
from training.defence.graph import DefenceGraph
from training.models.network import Network
from training.util.module_modes import seeded
from training.util.signatures import StepProgress, silent
from training.util.statistics import interval

STEPS = 16
NOISE = 2 / 255
PATCH_SHARE = 0.22
RANDOMISED = 100  # images; the correlation of maps hardly varies
Maps = dict[str, Tensor]


def explanation_report(
    defence: DefenceGraph,
    x: Tensor,
    y: Tensor,
    group: np.ndarray,
    *,
    patched: int = 150,
    seed: int = 0,
    references: bool = True,
    progress: StepProgress = silent,
) -> dict[str, Any]:
    """The quality of explanations of benign images x (N, C, H, W), labels y (N,), groups (N,); JSON content.

    The label explained is the one that the answering network gives. `references` adds captum's integrated gradients and
    Grad-CAM, and raises `TrainingError` without captum. `patched` of the images are also attacked by a patch.
    """
    methods = explainers(defence, references=references)
    label = predictions(defence.network, x)
    maps: Maps = {}
    for name, explain in methods.items():
        progress(f"maps: {name}", len(maps), len(methods))
        maps[name] = batched(explain, defence.network, x, label)
    maps["random"] = torch.rand(maps["served saliency"].shape, generator=seeded(seed, 20)).to(x)
    progress("deletion and insertion", 0, 1)
    faithful = {
        baseline: _faithful(defence.network, x, label, maps, group, baseline, seed) for baseline in ("blur", "mean")
    }
    progress("patches", 0, 1)
    pointing = _patches(defence, methods, x[:patched], y[:patched], group[:patched], seed)
    progress("centre, noise, randomised weights", 0, 1)
    disc = centre_disc(*x.shape[2:]).expand(len(x), -1, -1).to(x)
    centred = {name: _mean(share_inside(m, disc), group) for name, m in maps.items()}
    return {
        "n": len(x),
        "seed": seed,
        "steps": STEPS,
        "integrated_gradients_steps": IG_STEPS if references else None,
        "faithfulness": faithful,
        "patch": pointing,
        "centre": {
            "area": float(disc[0].mean()),
            "energy": centred,
        },
        "stability": _stable(defence.network, methods, maps, x, label, group, seed),
        "randomised_weights": _randomised(defence, methods, x[:RANDOMISED], label[:RANDOMISED], seed),
    }


def explainers(defence: DefenceGraph, *, references: bool) -> dict[str, Explain]:
    """Ways to explain an answer of the answering network, by name; the companion's map is of another network."""
    found: dict[str, Explain] = {"served saliency": margin_saliency}
    companion = defence.companion
    if companion is not None:
        found["companion's map"] = partial(_of_another, companion)
    if references:
        found |= {"captum integrated gradients": integrated_gradients, "captum Grad-CAM": captum_grad_cam}
    return found


def _of_another(companion: Network, _network: Network, x: Tensor, label: Tensor) -> Tensor:
    return last_layer_map(companion, x, label)


def _faithful(
    network: Network, x: Tensor, label: Tensor, maps: Maps, group: np.ndarray, baseline: Baseline, seed: int
) -> dict[str, Any]:
    """Areas under both curves, and by how much they beat the random map's on the same images."""
    areas = {
        name: deletion_insertion(network, x, label, m, baseline=baseline, steps=STEPS, generator=seeded(seed, 21))
        for name, m in maps.items()
    }
    out: dict[str, Any] = {}
    for name, found in areas.items():
        out[name] = {}
        for curve, values, chance in zip(("deletion", "insertion"), found, areas["random"], strict=True):
            out[name][curve] = _mean(values, group)
            if name != "random":
                out[name][curve]["less_random"] = interval(values, group, minus=chance)
    return out


def _patches(
    defence: DefenceGraph, methods: dict[str, Explain], x: Tensor, y: Tensor, group: np.ndarray, seed: int
) -> dict[str, Any]:
    """How much of each map, and of the region of attack, lies on a patch that makes the answering network err.

    The explained label is the wrong one, which the patch brought about: a faithful map must point at the patch.
    """
    side = round(PATCH_SHARE * min(x.shape[2:]))
    predict = searched(defence.network)
    made = [
        patch_attack(predict, *some, side=side, generator=seeded(seed, 22, number))
        for number, some in enumerate(zip(x.split(64), y.split(64), strict=True))
    ]
    images, masks = (torch.cat(column) for column in zip(*made, strict=True))
    label = predictions(defence.network, images)
    fooled = label != y
    images, masks, label = images[fooled], masks[fooled], label[fooled]
    found: dict[str, Any] = {"side": side, "images": len(x), "fooled": len(images)}
    if not len(images):
        return found
    group = group[fooled.cpu().numpy()]
    maps = {name: batched(explain, defence.network, images, label) for name, explain in methods.items()}
    maps["random"] = torch.rand(masks.shape, generator=seeded(seed, 23)).to(images)
    with torch.no_grad():
        window = defence.localiser.locate(images)[0]
    found["area"] = float(masks[0].mean())
    found["energy"] = {name: _mean(share_inside(m, masks), group) for name, m in maps.items()}
    found["points"] = {name: _mean(points_inside(m, masks), group) for name, m in maps.items()}
    found["covered_by_region_of_attack"] = _mean(share_inside(masks, window), group)
    return found


def _stable(
    network: Network,
    methods: dict[str, Explain],
    maps: Maps,
    x: Tensor,
    label: Tensor,
    group: np.ndarray,
    seed: int,
) -> dict[str, Any]:
    """How similar maps stay to themselves under uniform noise of 2/255, on images whose label stays."""
    count = min(len(x), RANDOMISED)
    noise = (torch.rand(x[:count].shape, generator=seeded(seed, 24)).to(x) * 2 - 1) * NOISE
    noisy = (x[:count] + noise).clamp(0, 1)
    with torch.no_grad():
        kept = network(noisy).argmax(1) == label[:count]
    group = group[:count][kept.cpu().numpy()]
    out: dict[str, Any] = {"noise": NOISE * 255, "images": count, "same_label": int(kept.sum())}
    for name, explain in methods.items():
        before, after = maps[name][:count][kept], batched(explain, network, noisy[kept], label[:count][kept])
        out[name] = {
            "rank_correlation": _mean(rank_correlation(before, after), group),
            "top_overlap": _mean(top_overlap(before, after).cpu().numpy(), group),
        }
    return out


def _randomised(
    defence: DefenceGraph, methods: dict[str, Explain], x: Tensor, label: Tensor, seed: int
) -> dict[str, Any]:
    """Mean rank correlation with the trained network's map, by method, as weights are reset from the head down."""
    out: dict[str, Any] = {"n": len(x)}
    for name, explain in methods.items():
        if name.startswith("captum integrated"):
            continue  # fifty gradients for each of the steps
        network = defence.companion if name == "companion's map" else defence.network
        assert network is not None
        own = last_layer_map if name == "companion's map" else explain
        rows = cascading_randomisation(network, partial(_maps_of, own, x, label), seed=seed)
        out[name] = [{"reset_down_to": part, "rank_correlation": float(values.mean())} for part, values in rows]
    return out


def _maps_of(explain: Explain, x: Tensor, label: Tensor, network: Network) -> Tensor:
    return batched(explain, network, x, label)


def _mean(values: np.ndarray, group: np.ndarray) -> dict[str, Any]:
    return {"mean": float(values.mean()), "interval": interval(values, group)}
