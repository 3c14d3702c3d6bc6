"""How layers answer attacks, and whether the detector watches the right ones."""

from __future__ import annotations

from typing import Any

import numpy as np

from training.analysis.layers import LayerReport, layer_ablation, layer_report, vulnerable_layers, watch
from training.analysis.sample import sample
from training.data.dataset import Split
from training.errors import TrainingError
from training.evaluate.harness.bench import Bench
from training.evaluate.harness.bench import labels as labels_of
from training.evaluate.harness.found import Figure, Found
from training.evaluate.measurements.attacked import attacked
from training.util.statistics import threshold_at

EPS, STEPS, PROBE_IMAGES = 8, 20, 2000
WATCHED = ("pgd_4", "pgd_8", "l2_1", "patch", "patch_low")
TOLD, RATE = "pgd_8", 0.05


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
        raise TrainingError("no layer has a vulnerability to speak of: heat maps are empty")
    made = {name: attacked(bench, name) for name in WATCHED}
    pixels = {name: bench.pixels(each.images) for name, each in made.items()}
    fooled = {name: labels_of(network, pixels[name]) != each.clean.y for name, each in made.items()}
    benign = (bench.pixels(split.x) for split in (bench.data.select, bench.data.calibrate))
    seen = watch(network, fit=next(benign), benign=next(benign), attacked=pixels, layers=taps)
    section["watched"] = layer_ablation(seen.some(fooled), chosen, seed=bench.settings.seed)
    outcomes = {
        "moved": reports["answering"].moved[chosen[0]],
        "watched": seen.scores(chosen, TOLD) > threshold_at(seen.scores(chosen), RATE),
        "watched_fooled": fooled[TOLD],
    }
    section["moved"] = float(outcomes["moved"].mean())
    figures = {
        "moved": Figure("moved", at=("layers", "moved")),
        "watched": Figure("watched", "watched_fooled", at=("layers", "watched", "chosen", TOLD, f"tpr_{RATE:g}")),
    }
    return Found(section, figures, outcomes)


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
