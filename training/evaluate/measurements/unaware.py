"""Levels 1 to 3: attackers who fool the answering network without knowing the defence; a unit for each attack."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
from pydantic import Field

from training.attacks.listed import ATTACKS
from training.attacks.patch import patch_side
from training.attacks.unaware import Attack
from training.evaluate.harness.attacked import answered, flags
from training.evaluate.harness.bench import Bench
from training.evaluate.harness.found import Figure, Found
from training.evaluate.harness.section import Interval, Section
from training.evaluate.harness.shown import Body, Table, percent, ranged
from training.evaluate.harness.unit import Place, Unit
from training.evaluate.harness.windows import random_windows
from training.evaluate.measurements.cascade import PLACE as CASCADE
from training.evaluate.measurements.cascade import Cascade
from training.recipes.evaluation import ALPHAS
from training.served.answers import Served
from training.util.statistics import auroc, interval, roc, share, threshold_at


class Cut(Section):
    """At one served level: shares of the images that fool, and `undetected` of all: served wrong and not flagged."""

    measured_fpr: float
    flagged: float | None
    flagged_interval: Interval
    max_softmax: float | None
    undetected: float


class Unaware(Section):
    """How the system as served meets one attack; shares are of the images that fool the answering network.

    But for `right`: of all that were attacked, those that are served right. Earlier cards have none.
    """

    n: int
    fooled: int
    right: float | None = None
    right_interval: Interval = None
    recovered: float | None
    recovered_interval: Interval
    recovered_if_always_served: float | None
    neutralised: float | None
    side: int | None = None
    median_queries: float | None = None
    at_1: Cut = Field(alias="alpha_0.01")
    at_5: Cut = Field(alias="alpha_0.05")


class Readings(Section):
    """What each reading finds: the system, and two baselines alone."""

    system: float | None
    max_softmax: float | None
    class_distance: float | None = None


class Caught(Readings):
    """Shares found where each reading flags the same share of benign test images."""

    system_interval: Interval = None


class Detection(Section):
    at_1: Caught = Field(alias="fpr_0.01")
    at_5: Caught = Field(alias="fpr_0.05")
    auroc: Readings


class Repaired(Section):
    """What neutralisation repairs of the answers to a patch, beside random windows of equal area."""

    n: int
    side: int
    fooled: int
    recovered: float | None
    recovered_interval: Interval
    random_windows: float | None
    beyond: float | None
    beyond_interval: Interval


class UnawareSection(Section):
    unaware: dict[str, Unaware]
    detection: dict[str, Detection]
    cascade: Cascade | None = None
    patches: dict[str, Repaired] | None = None


def readings(bench: Bench, answers: Served) -> dict[str, np.ndarray]:
    """What may find attacks, (N,) each, larger is more unusual: the system, and two baselines alone.

    `class_distance` is the Mahalanobis distance to the class mean (Lee et al. 2018, arXiv 1807.03888).
    """
    names, scores = bench.bundle.manifest.scores, answers.scores.astype(np.float64)
    found = {"system": bench.pipeline.judge.fusion.statistic(scores), "max_softmax": -answers.confidence}
    if "class_distance" in names:
        found["class_distance"] = scores[:, names.index("class_distance")]
    return found


def unaware(bench: Bench, attack: Attack) -> Found:
    """How the system meets an attack made without knowing it: only images that fool the answering network count.

    `alpha_*`: at the served cutoffs; `max_softmax` rejects the least confident answers with the threshold that flags
    exactly as many benign test images. Detection by every reading at measured rates, and what neutralisation repairs of
    a local attack, have sections of their own.
    """
    name = attack.name
    made, answers = answered(bench, name)
    fooled = answers.raw != made.clean.y
    group = made.clean.group[fooled]
    recovered = answers.served == made.clean.y
    section: dict[str, Any] = {
        "n": len(made),
        "fooled": int(fooled.sum()),
        "right": float(recovered.mean()),
        "right_interval": interval(recovered, made.clean.group),
        "recovered": share(recovered, fooled),
        "recovered_interval": interval(recovered[fooled], group),
        "recovered_if_always_served": share(answers.after == made.clean.y, fooled),
        "neutralised": share(answers.neutralised, fooled),
    }
    if attack.local:
        section["side"] = patch_side(bench.bundle.manifest.input.height)
    if "queries" in made.rows:
        section["median_queries"] = float(np.median(made.rows["queries"]))
    passed = {}
    for alpha in ALPHAS:
        flagged = flags(bench, answers, alpha)
        passed[alpha] = ~recovered & ~flagged
        rate = float(flags(bench, bench.clean, alpha).mean())
        section[f"alpha_{alpha:g}"] = {
            "measured_fpr": rate,
            "flagged": share(flagged, fooled),
            "flagged_interval": interval(flagged[fooled], group),
            "max_softmax": share(answers.confidence < np.quantile(bench.clean.confidence, rate), fooled),
            "undetected": float(passed[alpha].mean()),
        }
    outcomes = {f"fooled_{name}": fooled}
    figures, measured, rates = _measured(bench, name, answers, fooled, group, outcomes)
    for alpha in ALPHAS:
        key = f"undetected_{name}_{alpha:g}"
        outcomes[key] = passed[alpha]
        figures[key] = Figure(key, at=("unaware", name, f"alpha_{alpha:g}", "undetected"))
    key = f"right_{name}"
    outcomes[key], figures[key] = recovered, Figure(key, at=("unaware", name, "right"))
    parts: dict[str, Any] = {"unaware": {name: section}, "detection": {name: measured}}
    if bench.pipeline.can_screen:
        _, through = answered(bench, name, cascade=True)
        screened = {"fooled": int(fooled.sum()), "screened": share(through.screened, fooled)}
        screened |= {f"alpha_{a:g}": share(flags(bench, through, a, cascade=True), fooled) for a in ALPHAS}
        parts["cascade"] = {"attacks": {name: screened}}
    if attack.local:
        key = f"recovered_{name}"
        outcomes[key], figures[key] = recovered, Figure(key, f"fooled_{name}", at=("unaware", name, "recovered"))
        control = random_windows(bench, name, made.images[fooled], made.clean.y[fooled], recovered[fooled], group)
        kept = ("n", "side", "fooled", "recovered", "recovered_interval")
        parts["patches"] = {name: {key: section[key] for key in kept} | control}
    return Found(UnawareSection.model_validate(parts), figures, outcomes, {"roc": rates})


def _measured(
    bench: Bench, name: str, answers: Served, fooled: np.ndarray, group: np.ndarray, outcomes: dict[str, np.ndarray]
) -> tuple[dict[str, Figure], dict[str, Any], dict[str, Any]]:
    """Figures (their outcomes are added), shares detected where each reading flags that share of benign images, ROC."""
    benign, seen = readings(bench, bench.clean), readings(bench, answers)
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


def _title(name: str, side: int | None = None) -> str:
    title = ATTACKS[name].title if name in ATTACKS else name
    return title if side is None else f"{title}, {side}x{side}"


def _show(found: dict[str, Unaware]) -> Body:
    whole = any(row.right is not None for row in found.values())
    rows = [
        (
            _title(name, row.side),
            f"{row.n:,}",
            f"{row.fooled:,}",
            percent(alpha, 0),
            percent(at.measured_fpr),
            ranged(at.flagged, at.flagged_interval),
            percent(at.max_softmax),
            percent(row.recovered),
            percent(at.undetected),
            *([ranged(row.right, row.right_interval)] if whole else []),
        )
        for name, row in found.items()
        for alpha, at in zip(ALPHAS, (row.at_1, row.at_5), strict=True)
    ]
    head = [
        "attack",
        "images",
        "fooled",
        "alpha",
        "measured FPR",
        "flagged",
        "max softmax",
        "served right",
        "wrong and unflagged, of all",
        *(["served right, of all"] if whole else []),
    ]
    return [Table(head, rows)]


def _show_detection(found: dict[str, Detection]) -> Body:
    rows = [
        (
            _title(name),
            percent(rate, 0),
            ranged(at.system, at.system_interval),
            percent(at.max_softmax),
            percent(at.class_distance),
            "-" if row.auroc.system is None else f"{row.auroc.system:.3f}",
        )
        for name, row in found.items()
        for rate, at in zip(ALPHAS, (row.at_1, row.at_5), strict=True)
    ]
    head = ("attack", "measured FPR", "the system", "max softmax", "Mahalanobis", "AUROC, the system")
    return [Table(head, rows)]


def _show_patches(found: dict[str, Repaired]) -> Body:
    rows = [
        (
            _title(name, row.side),
            f"{row.fooled:,}",
            ranged(row.recovered, row.recovered_interval),
            percent(row.random_windows),
            ranged(row.beyond, row.beyond_interval),
        )
        for name, row in found.items()
    ]
    return [Table(("attack", "fooled", "served right", "random windows", "beyond them"), rows)]


PLACES = (
    Place(
        "unaware",
        "Attackers who do not know the defence",
        "Attacks on the answering network alone; only images that fool it count. Max softmax rejects the least "
        "confident answers at the same measured false-positive rate.",
        "seen",
        dict[str, Unaware],
        _show,
    ),
    Place(
        "detection",
        "Detection at measured false-positive rates",
        "Share of successful attacks flagged where each reading flags exactly that share of the benign test images.",
        "seen",
        dict[str, Detection],
        _show_detection,
    ),
    Place(
        "patches",
        "Patches: what neutralisation repairs",
        "Of the images that fool the answering network: served right, beside inpainting a random window of equal area.",
        "seen",
        dict[str, Repaired],
        _show_patches,
    ),
)


def unit_of(attack: Attack) -> Unit:
    """The unit that measures an attack; its figures have the attack's title."""
    found = "detected at a measured {:g} % of false positives"
    figures = {f"detected_{attack.name}_{rate:g}": f"{attack.title}: {found.format(100 * rate)}" for rate in ALPHAS}
    figures |= {
        f"undetected_{attack.name}_{alpha:g}": f"{attack.title}: wrong and unflagged at alpha {100 * alpha:g} %, of all"
        for alpha in ALPHAS
    }
    figures[f"right_{attack.name}"] = f"{attack.title}: answered rightly, of all"
    if attack.local:
        figures[f"recovered_{attack.name}"] = f"{attack.title}, where it fools: answered rightly after neutralisation"
    return Unit(
        attack.name,
        attack.level,
        f"{attack.title} on the answering network",
        partial(unaware, attack=attack),
        UnawareSection,
        places=(*PLACES, CASCADE),
        figures=figures,
        count=attack.count,
        depends=attack.depends,
        seconds=attack.seconds,
        verified=attack.chunk if attack.local else 32,  # where patches lie is drawn for a chunk at once
    )


UNITS = tuple(unit_of(attack) for attack in ATTACKS.values())
