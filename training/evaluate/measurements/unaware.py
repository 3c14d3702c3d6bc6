"""Levels 1, 2 and patches: attackers who fool the answering network without knowing the defence."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import torch

from gateway.core.decode import to_pixels
from training.defence.localisers import localiser_named
from training.evaluate.harness.bench import Bench
from training.evaluate.harness.found import Figure, Found
from training.evaluate.measurements.attacked import answered, patch_side
from training.evaluate.measurements.benign import flags
from training.recipes.evaluation import ALPHAS
from training.served.answers import Served
from training.served.scoring import batches, run_images
from training.util.statistics import auroc, interval, roc, share, threshold_at

RANDOM_WINDOWS = 5


def readings(bench: Bench, answers: Served) -> dict[str, np.ndarray]:
    """What may tell attacks, (N,) each, larger is more unusual: the system, and two baselines alone.

    `class_distance` is the Mahalanobis distance to the class mean (Lee et al. 2018, arXiv 1807.03888).
    """
    names, scores = bench.bundle.manifest.scores, answers.scores.astype(np.float64)
    found = {"system": bench.pipeline.judge.fusion.statistic(scores), "max_softmax": -answers.confidence}
    if "class_distance" in names:
        found["class_distance"] = scores[:, names.index("class_distance")]
    return found


def unaware(bench: Bench, name: str) -> Found:
    """How the system meets an attack made without knowing it: only images that fool the answering network count.

    `alpha_*`: at the served cutoffs; `max_softmax` rejects the least confident answers with the threshold that flags
    exactly as many benign test images. `undetected` is the share of all attacked images that are served wrong and not
    flagged. Detection by every reading at measured rates, and what patches' neutralisation recovers, have sections of
    their own.
    """
    made, said = answered(bench, name)
    fooled = said.raw != made.clean.y
    group = made.clean.group[fooled]
    recovered = said.served == made.clean.y
    section: dict[str, Any] = {
        "n": len(made),
        "fooled": int(fooled.sum()),
        "recovered": share(recovered, fooled),
        "recovered_interval": interval(recovered[fooled], group),
        "recovered_if_always_served": share(said.after == made.clean.y, fooled),
        "neutralised": share(said.neutralised, fooled),
    }
    if name.startswith("patch"):
        section["side"] = patch_side(bench)
    if "queries" in made.rows:
        section["median_queries"] = float(np.median(made.rows["queries"]))
    for alpha in ALPHAS:
        flagged = flags(bench, said, alpha)
        rate = float(flags(bench, bench.clean, alpha).mean())
        section[f"alpha_{alpha:g}"] = {
            "measured_fpr": rate,
            "flagged": share(flagged, fooled),
            "flagged_interval": interval(flagged[fooled], group),
            "max_softmax": share(said.confidence < np.quantile(bench.clean.confidence, rate), fooled),
            "undetected": float(((said.served != made.clean.y) & ~flagged).mean()),
        }
    outcomes = {f"fooled_{name}": fooled}
    figures, measured, rates = _measured(bench, name, said, fooled, group, outcomes)
    parts: dict[str, Any] = {"unaware": {name: section}, "detection": {name: measured}}
    if bench.pipeline.can_screen:
        _, through = answered(bench, name, cascade=True)
        screened = {"fooled": int(fooled.sum()), "screened": share(through.screened, fooled)}
        parts["cascade"] = {
            "attacks": {
                name: screened | {f"alpha_{a:g}": share(flags(bench, through, a, cascade=True), fooled) for a in ALPHAS}
            }
        }
    if name.startswith("patch"):
        key = f"recovered_{name}"
        outcomes[key], figures[key] = recovered, Figure(key, f"fooled_{name}", at=("unaware", name, "recovered"))
        control = _random_windows(bench, name, made.images[fooled], made.clean.y[fooled], recovered[fooled], group)
        parts["patches"] = {name: {key: section[key] for key in ("n", "side", "fooled", *_RECOVERED)} | control}
    return Found(parts, figures, outcomes, {"roc": rates})


_RECOVERED = ("recovered", "recovered_interval")


def _measured(
    bench: Bench, name: str, said: Served, fooled: np.ndarray, group: np.ndarray, outcomes: dict[str, np.ndarray]
) -> tuple[dict[str, Figure], dict[str, Any], dict[str, Any]]:
    """Figures (their outcomes are added), shares detected where each reading flags that share of benign images, ROC."""
    benign, seen = readings(bench, bench.clean), readings(bench, said)
    figures, section = {}, dict[str, Any]()
    for rate in ALPHAS:
        caught = {reading: seen[reading] > threshold_at(benign[reading], rate) for reading in seen}
        section[f"fpr_{rate:g}"] = {reading: share(which, fooled) for reading, which in caught.items()} | {
            "system_interval": interval(caught["system"][fooled], group)
        }
        key = f"detected_{name}_{rate:g}"
        outcomes[key] = caught["system"]
        figures[key] = Figure(key, f"fooled_{name}", at=("detection", name, f"fpr_{rate:g}", "system"))
    section["auroc"] = {reading: auroc(benign[reading], seen[reading][fooled]) for reading in seen}
    return figures, section, {reading: roc(benign[reading], seen[reading][fooled]) for reading in seen}


def _random_windows(
    bench: Bench, name: str, images: np.ndarray, labels: np.ndarray, recovered: np.ndarray, group: np.ndarray
) -> dict[str, Any]:
    """The control: the answer after a random window as large as the defence's is inpainted, mean of five draws.

    Every image is neutralised; the defence's own answer (`recovered`) has to be better by an interval without 0.
    """
    if len(images) == 0:
        return {"random_windows": None, "beyond": None, "beyond_interval": None}
    engine, spec = bench.pipeline.engine, bench.bundle.manifest.input
    height, width = images.shape[1:3]
    sides = _window_sides(bench, images)
    rng = np.random.default_rng([bench.settings.seed, height])
    hits = np.zeros((RANDOM_WINDOWS, len(images)), bool)
    for draw in range(RANDOM_WINDOWS):
        masks = np.zeros(images.shape[:3], np.float32)
        for mask, side in zip(masks, sides, strict=True):
            top, left = rng.integers(0, height - side + 1), rng.integers(0, width - side + 1)
            mask[top : top + side, left : left + side] = 1
        answers = run_images(
            engine,
            images,
            spec,
            masks=masks,
            part="verdict",
            batch=engine.buckets[-1],
            progress=partial(bench.progress, f"{name}: random windows"),
        )
        hits[draw] = answers.logits.argmax(1) == labels
    mean = hits.mean(0)
    return {
        "random_windows": float(mean.mean()),
        "beyond": float(recovered.mean() - mean.mean()),
        "beyond_interval": interval(recovered, group, minus=mean),
    }


def _window_sides(bench: Bench, images: np.ndarray) -> np.ndarray:
    """Sides (N,) in pixels of squares as large as the defence's own regions on uint8 images (N, H, W, C)."""
    parts = batches(images, bench.pipeline.engine.buckets[-1])
    localiser = localiser_named(bench.bundle.manifest.localiser)
    areas = [localiser.locate(torch.from_numpy(to_pixels(part)))[0].sum((1, 2)) for part in parts]
    return np.asarray(torch.cat(areas).sqrt().round().long().numpy())
