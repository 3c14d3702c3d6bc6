"""How layers answer attacks, and whether the detector watches the right ones."""

from __future__ import annotations

from typing import Any

import numpy as np
from pydantic import Field

from training.analysis.layers import UNDETERMINED, LayerReport, layer_ablation, layer_report, vulnerable_layers, watch
from training.analysis.sample import sample
from training.attacks.listed import ATTACKS
from training.data.dataset import Split
from training.errors import TrainingError
from training.evaluate.harness.alone import ROLES
from training.evaluate.harness.attacked import attacked
from training.evaluate.harness.bench import Bench
from training.evaluate.harness.bench import labels as labels_of
from training.evaluate.harness.found import Figure, Found
from training.evaluate.harness.section import Section
from training.evaluate.harness.shown import Body, Table, percent
from training.evaluate.harness.unit import Place, Unit
from training.util.statistics import threshold_at

EPS, STEPS, PROBE_IMAGES = 8, 20, 2000
WATCHED = ("pgd_4", "pgd_8", "l2_1", "patch", "patch_low")
HEADLINE, RATE = "pgd_8", 0.05


class Layer(Section):
    """One layer: distances of its Grad-CAM from the clean image's, attacked and under noise, and their ratio."""

    layer: str
    adversarial: float
    gaussian: float
    vulnerability: float
    interval: tuple[float, float]
    responses: float
    turned: float


class NetworkLayers(Section):
    fooled: int
    rows: list[Layer]


class Watched(Section):
    """Detection by one set of layers of one attack."""

    auroc: float
    tpr_1: float = Field(alias="tpr_0.01")
    tpr_5: float = Field(alias="tpr_0.05")


class Spread(Section):
    mean: float
    min: float
    max: float


class RandomSets(Section):
    auroc: Spread
    tpr_1: Spread = Field(alias="tpr_0.01")
    tpr_5: Spread = Field(alias="tpr_0.05")


class WatchedLayers(Section):
    """Detection by attack, for each set of watched layers; `attacked` are the images that fool, by attack."""

    benign: int
    attacked: dict[str, int]
    chosen_layers: list[str]
    draws: int
    seed: int
    chosen: dict[str, Watched]
    all: dict[str, Watched]
    last: dict[str, Watched]
    single: dict[str, dict[str, Watched]]
    random: dict[str, RandomSets]


class Layers(Section):
    n: int
    eps: float
    steps: int
    answering: NetworkLayers
    companion: NetworkLayers | None = None
    watched: WatchedLayers
    moved: float


def layers(bench: Bench) -> Found:
    """Vulnerability of every layer of both networks on test images, and detection by sets of watched layers.

    The most vulnerable of the answering network's tapped layers is chosen on the select split; thresholds of the sets
    come from the calibrate split, attacks are those of the unaware units.
    """
    test, network = bench.first(bench.settings.layered), bench.defence.network
    reports = {role: _report(bench, role, test, role) for role in bench.networks}
    section: dict[str, Any] = {"n": len(test), "eps": EPS, "steps": STEPS} | {
        role: {"fooled": len(report.images), "rows": [_row(row) for row in report.content["layers"]]}
        for role, report in reports.items()
    }
    few = bench.data.select.take(np.arange(min(bench.settings.layered, len(bench.data.select))))
    taps = list(network.tap_channels)
    chosen = vulnerable_layers(_report(bench, "answering", few, "answering, select").content, count=1, among=taps)
    if not chosen:
        raise TrainingError("no layer's vulnerability can be determined: heat maps are empty")
    made = {name: attacked(bench, name) for name in WATCHED}
    pixels = {name: bench.pixels(each.images) for name, each in made.items()}
    fooled = {name: labels_of(network, pixels[name]) != each.clean.y for name, each in made.items()}
    benign = (bench.pixels(split.x) for split in (bench.data.select, bench.data.calibrate))
    seen = watch(network, fit=next(benign), benign=next(benign), attacked=pixels, layers=taps)
    section["watched"] = layer_ablation(seen.some(fooled), chosen, seed=bench.settings.seed)
    outcomes = {
        "moved": reports["answering"].moved[chosen[0]],
        "watched": seen.scores(chosen, HEADLINE) > threshold_at(seen.scores(chosen), RATE),
        "watched_fooled": fooled[HEADLINE],
    }
    section["moved"] = float(outcomes["moved"].mean())
    figures = {
        "moved": Figure("moved", at=("layers", "moved")),
        "watched": Figure("watched", "watched_fooled", at=("layers", "watched", "chosen", HEADLINE, f"tpr_{RATE:g}")),
    }
    return Found(Layers.model_validate(section), figures, outcomes)


def _report(bench: Bench, role: str, split: Split, name: str) -> LayerReport:
    network, data = bench.networks[role], bench.data
    fit = (each.to(bench.device) for each in sample(data.train, PROBE_IMAGES, seed=bench.settings.seed)[:2])
    return layer_report(
        network,
        bench.pixels(split.x),
        bench.targets(split.y),
        split.group,
        fit=(next(fit), next(fit)),
        classes=len(data.classes),
        eps=EPS / 255,
        steps=STEPS,
        seed=bench.settings.seed,
        progress=lambda what, done, total: bench.progress(f"layers, {name}: {what}", done, total),
    )


def _row(row: dict[str, Any]) -> dict[str, Any]:
    maps, responses = row["own_label"]["grad_cam"], row["response"]
    return {
        "layer": row["layer"],
        **maps,
        "responses": responses["vulnerability"],
        "turned": row["turned"]["adversarial"],
    }


def _show(found: Layers) -> Body:
    networks = {"answering": found.answering, "companion": found.companion}
    present = {ROLES[role]: each for role, each in networks.items() if each is not None}
    rows = [
        (
            name,
            row.layer,
            f"{row.adversarial:.3f} / {row.gaussian:.3f}",
            _vulnerability(row),
            f"{row.responses:.1f}",
            percent(row.turned, 0),
        )
        for name, network in present.items()
        for row in network.rows
    ]
    fooled = " and ".join(f"{network.fooled:,} that fool the {name}" for name, network in present.items())
    return [
        (
            f"PGD-{found.steps} at {found.eps:g}/255, n = {found.n:,} ({fooled}). The attack moves the most vulnerable "
            f"layer's map more than noise does on {percent(found.moved)} of its images. D: median distance of a "
            "layer's Grad-CAM from the clean image's; V: D attacked over D noise (after Renkhoff et al. 2023). "
            "`turned`: images whose linear probe at the layer prefers the wrong label."
        ),
        Table(("network", "layer", "D attacked / noise", "V", "V of responses", "turned"), rows),
        *_show_watched(found.watched),
    ]


def _show_watched(watched: WatchedLayers) -> Body:
    chosen = ", ".join(watched.chosen_layers)
    sets = {f"{chosen} (chosen)": watched.chosen, "all": watched.all}
    sets |= {f"{layer} alone": each for layer, each in watched.single.items() if layer != chosen}
    attacks = list(watched.attacked)
    drawn = [watched.random[attack].auroc for attack in attacks]
    head = [f"{ATTACKS[name].title if name in ATTACKS else name} (n = {watched.attacked[name]:,})" for name in attacks]
    return [
        (
            "Detection by the neuron deviation of watched layers alone: AUROC, then share found at 1 / 5 % of false "
            f"positives (thresholds of {watched.benign:,} images of the calibrate split). The layer with the largest V "
            f"on the select split is chosen; the random row has means and ranges of AUROC over {watched.draws} draws "
            "of as many layers."
        ),
        Table(
            ("watched", *head),
            [
                *((name, *(_found(each[attack]) for attack in attacks)) for name, each in sets.items()),
                ("random", *(f"{area.mean:.2f} ({area.min:.2f} to {area.max:.2f})" for area in drawn)),
            ],
        ),
    ]


def _vulnerability(row: Layer) -> str:
    if row.interval[1] > UNDETERMINED:
        return "undetermined (maps mostly empty)"
    return f"{row.vulnerability:.1f} ({row.interval[0]:.1f} to {row.interval[1]:.1f})"


def _found(cell: Watched) -> str:
    return f"{cell.auroc:.3f}, {100 * cell.tpr_1:.0f} / {100 * cell.tpr_5:.0f} %"


UNIT = Unit(
    "layers",
    "layers",
    "vulnerability of layers",
    layers,
    Layers,
    ("layers",),
    (
        Place(
            "layers",
            "Layers",
            "What an attack moves inside the networks, beside Gaussian noise of equal mean and norm, and whether the "
            "detector watches the right layers.",
            "measured",
            Layers,
            _show,
        ),
    ),
    figures={
        "moved": "attacks that move the most vulnerable layer's heat map more than equal noise does",
        "watched": "PGD 8/255: detected by the most vulnerable layer's neurons alone, 5 % of false positives",
    },
    count="layered",
    depends=("steps",),
    seconds=0.7,
    verified=64,
)
