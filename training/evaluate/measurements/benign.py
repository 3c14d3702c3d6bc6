"""Level 0: benign test images as they are."""

from __future__ import annotations

from typing import Any

import numpy as np
from pydantic import Field

from training.data.dataset import Split
from training.evaluate.harness.attacked import flags
from training.evaluate.harness.bench import Bench
from training.evaluate.harness.found import Figure, Found
from training.evaluate.harness.section import Flagged, Interval, Section
from training.evaluate.harness.shown import Body, percent, ranged
from training.evaluate.harness.unit import Place, Unit
from training.recipes.evaluation import ALPHAS
from training.util.statistics import interval

FIGURES = {
    "accuracy_answering": "clean accuracy, answering network",
    "accuracy_companion": "clean accuracy, companion",
    "accuracy_served": "clean accuracy, as served",
    "flagged_0.01": "benign images flagged at alpha 1 %",
    "flagged_0.05": "benign images flagged at alpha 5 %",
    "harmed": "right answers that neutralisation made wrong, benign",
}


class Benign(Section):
    """Shares of `n` benign test images; `disagrees` and `accuracy_companion` where the bundle has a companion."""

    n: int
    accuracy_answering: float
    accuracy_answering_interval: Interval
    accuracy_companion: float | None = None
    accuracy_companion_interval: Interval = None
    accuracy_served: float
    accuracy_served_interval: Interval
    neutralised: float
    neutralised_interval: Interval
    harmed: float
    harmed_interval: Interval
    flagged: Flagged
    flagged_1_interval: Interval = Field(None, alias="flagged_0.01_interval")
    flagged_5_interval: Interval = Field(None, alias="flagged_0.05_interval")
    disagrees: float | None = None
    resampled_by: str


class Worst(Section):
    """The class that fares worst in one respect, its share, and how many images it has."""

    name: str = Field(alias="class")
    share: float
    n: int


class WorstClasses(Section):
    """The class with the lowest accuracy, and the one flagged most often at each alpha."""

    accuracy_answering: Worst
    flagged_1: Worst = Field(alias="flagged_0.01")
    flagged_5: Worst = Field(alias="flagged_0.05")


class BenignSection(Section):
    benign: Benign
    worst_classes: WorstClasses


def benign(bench: Bench) -> Found:
    """Clean accuracy of every answer, share flagged at each alpha, and what neutralisation does to clean images."""
    test, answers = bench.test, bench.clean
    right = answers.raw == test.y
    outcomes = {
        "accuracy_answering": right,
        "accuracy_served": answers.served == test.y,
        "neutralised": answers.neutralised,
        "harmed": right & (answers.served != test.y),
    } | {f"flagged_{alpha:g}": flags(bench, answers, alpha) for alpha in ALPHAS}
    if bench.bundle.manifest.companion:
        outcomes["accuracy_companion"] = answers.companion == test.y
    section: dict[str, Any] = {"n": len(test)}
    for name, which in outcomes.items():
        if not name.startswith("flagged"):
            section |= {name: float(which.mean()), f"{name}_interval": interval(which, test.group)}
    section["flagged"] = {f"{alpha:g}": float(outcomes[f"flagged_{alpha:g}"].mean()) for alpha in ALPHAS}
    section |= {f"flagged_{a:g}_interval": interval(outcomes[f"flagged_{a:g}"], test.group) for a in ALPHAS}
    if bench.bundle.manifest.companion:
        section["disagrees"] = float((answers.companion != answers.raw).mean())
    section["resampled_by"] = "group" if len(np.unique(test.group)) < len(test) else "image"
    kept = {name: which for name, which in outcomes.items() if name != "neutralised"}
    places = {name: ("benign", *name.split("_")) if name.startswith("flagged") else ("benign", name) for name in kept}
    worst = worst_classes(test, bench.data.classes, outcomes["accuracy_answering"], outcomes)
    found = BenignSection(benign=Benign.model_validate(section), worst_classes=worst)
    return Found(found, {name: Figure(name, at=places[name]) for name in kept}, kept)


def worst_classes(test: Split, classes: list[str], right: np.ndarray, outcomes: dict[str, np.ndarray]) -> WorstClasses:
    """The worst classes where `right` (N,) are answered rightly and `outcomes` has who is flagged at each alpha."""
    present = np.unique(test.y)

    def by_class(which: np.ndarray) -> np.ndarray:
        return np.array([which[test.y == k].mean() for k in present])

    def worst(shares: np.ndarray, at: int) -> dict[str, Any]:
        k = present[at]
        return {"class": classes[k], "share": float(shares[at]), "n": int((test.y == k).sum())}

    accuracy = by_class(right)
    rows = {"accuracy_answering": worst(accuracy, int(accuracy.argmin()))}
    for alpha in ALPHAS:
        flagged = by_class(outcomes[f"flagged_{alpha:g}"])
        rows[f"flagged_{alpha:g}"] = worst(flagged, int(flagged.argmax()))
    return WorstClasses.model_validate(rows)


def _lacks_disagreement(bench: Bench, section: dict[str, Any]) -> bool:
    """Whether a finished section was written before cards stated how often the companion disagrees."""
    return bench.bundle.manifest.companion and "disagrees" not in section["benign"]


def _show(found: Benign) -> Body:
    body: Body = [
        (
            f"n = {found.n:,}. Served accuracy {ranged(found.accuracy_served, found.accuracy_served_interval)}; "
            f"flagged at alpha 1 %: {percent(found.flagged.at_1)}, at 5 %: {percent(found.flagged.at_5)}. "
            f"Neutralisation ran on {percent(found.neutralised)} and turned a right answer into a wrong one on "
            f"{ranged(found.harmed, found.harmed_interval, 2)}."
        )
    ]
    if found.disagrees is not None:
        body.append(
            f"The companion disagrees with the answering network on {percent(found.disagrees)}. Where that is more "
            "than the share that may be flagged, its objection cannot count unless it is strong, and an attacker who "
            "knows need not win it over."
        )
    return body


def _show_worst(found: WorstClasses) -> Body:
    stated = {
        "lowest accuracy": found.accuracy_answering,
        "most flags at alpha 1 %": found.flagged_1,
        "most flags at alpha 5 %": found.flagged_5,
    }
    return ["; ".join(f"{text}: {row.name}, {percent(row.share)}, n = {row.n:,}" for text, row in stated.items()) + "."]


UNIT = Unit(
    "benign",
    "0",
    "benign test images",
    benign,
    BenignSection,
    places=(
        Place(
            "benign",
            "Benign test images",
            "What the defence costs those who attack nothing.",
            "benign",
            Benign,
            _show,
        ),
        Place(
            "worst_classes",
            "Worst classes",
            "The class that fares worst in each respect.",
            "benign",
            WorstClasses,
            _show_worst,
        ),
    ),
    figures=FIGURES,
    seconds=0.012,
    lacks=_lacks_disagreement,
)
