"""Level 4: an attacker who knows everything; an image counts at the worst of all attacks of `harness.suite`."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
from pydantic import Field

from training.evaluate.harness.bench import Bench
from training.evaluate.harness.found import Figure, Found
from training.evaluate.harness.section import Interval, RangedByAlpha, Section
from training.evaluate.harness.shown import Body, Table, by_eps, ranged
from training.evaluate.harness.store import Arrays
from training.evaluate.harness.suite import SERVED, SIMPLE, suite, union_of
from training.evaluate.harness.systems import ALONE, DOUBTS
from training.evaluate.harness.unit import Place, Unit
from training.recipes.evaluation import ALPHAS, RATES
from training.util.statistics import interval

EFFORT = ("steps", "adaptive_steps", "adaptive_targets", "adaptive_restarts")
SYSTEMS = {
    "answering": "answering network alone",
    "max_softmax": "+ rejection by maximum softmax (control: a broken detector)",
    "detector": "+ detector",
    "companion": "+ companion",
    "strict": "+ companion, strict",
    "all": "all together",
    ALONE: "the companion's own error",
}


def system_title(name: str) -> str:
    """A system's name as cards print it; that of a score which is a system of its own is the score's."""
    return SYSTEMS.get(name, f"+ {name}")


class Joint(RangedByAlpha):
    """At one radius: wrong and not flagged as served, by alpha, and behind the cascade; the companion's own error.

    `half` is that error at half the radius, `excess` what the attacker wins beyond it.
    """

    n: int
    cascade_1: float | None = Field(None, alias="cascade_0.01")
    cascade_1_interval: Interval = Field(None, alias="cascade_0.01_interval")
    cascade_5: float | None = Field(None, alias="cascade_0.05")
    cascade_5_interval: Interval = Field(None, alias="cascade_0.05_interval")
    companion: float | None = None
    companion_interval: Interval = None
    half: float | None = None
    half_interval: Interval = None
    excess_1: float | None = Field(None, alias="excess_0.01")
    excess_5: float | None = Field(None, alias="excess_0.05")


class Adaptive(Section):
    """The effort of the attacks, and a row for each radius under `eps_<radius>`."""

    model_config = Section.model_config | {"extra": "allow"}
    __pydantic_extra__: dict[str, Joint] = Field(init=False)

    n: int
    steps: int
    targets: int
    restarts: int

    @property
    def rows(self) -> dict[str, Joint]:
        return self.__pydantic_extra__


class ByRate(Section):
    """Wrong and not flagged where a system flags that share of the benign test images (`RATES`)."""

    at_1: float = Field(alias="fpr_0.01")
    at_1_interval: Interval = Field(None, alias="fpr_0.01_interval")
    at_5: float = Field(alias="fpr_0.05")
    at_5_interval: Interval = Field(None, alias="fpr_0.05_interval")
    at_10: float = Field(alias="fpr_0.1")
    at_10_interval: Interval = Field(None, alias="fpr_0.1_interval")


Systems = dict[str, dict[str, ByRate]]
Stages = dict[str, dict[str, int]]


class AdaptiveSection(Section):
    """`systems` and `stages` by radius: a row for each system, and how many images each attack was the first to win."""

    adaptive: Adaptive
    systems: Systems
    stages: Stages


def adaptive(bench: Bench, *, eps: int) -> Found:
    """Share of test images answered wrong and not flagged, by system and rate, and what each attack adds.

    `half` is the companion's error at half the radius, to compare with: a detector that is robust at eps makes a
    classifier (perhaps one that cannot be computed) that is robust at eps / 2 (Tramer 2022, arXiv 2107.11630), so that
    figures far below it would claim more than the companion's kind of training gives.
    """
    settings, key = bench.settings, f"eps_{eps}"
    test = bench.first(settings.adaptive)
    rows, columns = suite(bench, eps=eps, count=settings.adaptive, steps=settings.adaptive_steps)
    union = union_of(rows, columns)
    row: dict[str, Any] = {"n": len(test)}

    def record(name: str, won: np.ndarray) -> None:
        row.update({name: float(won.mean()), f"{name}_interval": interval(won, test.group)})

    for prefix, system in (("alpha", "served"), ("cascade", "cascade")):
        for alpha in ALPHAS:
            if (won := union.get(f"{system}@{alpha:g}")) is not None:
                record(f"{prefix}_{alpha:g}", won)
    outcomes, figures = {}, {}
    for alpha in ALPHAS:
        figure = f"joint_{eps}" if alpha == max(ALPHAS) else f"joint_{eps}_{alpha:g}"
        outcomes[figure] = union[f"served@{alpha:g}"]
        figures[figure] = Figure(figure, at=("adaptive", key, f"alpha_{alpha:g}"))
    if ALONE in union:
        half, _ = suite(bench, eps=eps / 2, count=settings.adaptive, steps=settings.adaptive_steps, only=[ALONE])
        record("companion", union[ALONE])
        record("half", union_of(half, columns)[ALONE])
        row |= {f"excess_{alpha:g}": row[f"alpha_{alpha:g}"] - row["companion"] for alpha in ALPHAS}
        outcomes[f"companion_error_{eps}"] = union[ALONE]
        figures[f"joint_excess_{eps}"] = Figure(
            f"joint_{eps}", minus=f"companion_error_{eps}", at=("adaptive", key, f"excess_{max(ALPHAS):g}")
        )
    effort = {name: getattr(settings, f"adaptive_{name}") for name in ("steps", "targets", "restarts")}
    simple, joint = (
        {column: float(won.mean()) for column, won in union_of(rows, columns, names).items()}
        for names in (SIMPLE, [name for name in rows if name not in SIMPLE])
    )
    section = {
        "adaptive": {"n": len(test)} | effort | {key: row},
        "systems": {key: by_system(union, test.group)},
        "stages": {key: _added(rows, columns.index(SERVED))},
    }
    return Found(AdaptiveSection.model_validate(section), figures, outcomes, {"simple": simple, "joint": joint})


def by_system(union: dict[str, np.ndarray], group: np.ndarray) -> dict[str, dict[str, Any]]:
    """{system: {fpr_<rate>: share, fpr_<rate>_interval}}; systems without a rate have the same figure at each."""
    table: dict[str, dict[str, Any]] = {}
    for column, won in union.items():
        system, _, rate = column.partition("@")
        if system in {"served", "cascade", "guard", DOUBTS}:
            continue
        for each in [rate] if rate else [f"{r:g}" for r in RATES]:
            row = table.setdefault(system, {})
            row |= {f"fpr_{each}": float(won.mean()), f"fpr_{each}_interval": interval(won, group)}
    return table


def _added(rows: Arrays, column: int) -> dict[str, int]:
    """How many images each attack in turn was the first to win, in that column."""
    so_far, counts = np.zeros(len(next(iter(rows.values()))), bool), {}
    for name, won in rows.items():
        counts[name] = int((won[:, column] & ~so_far).sum())
        so_far |= won[:, column]
    return counts


def _show(found: Adaptive) -> Body:
    rows = []
    for eps, row in by_eps(found.rows):
        served = (ranged(row.at_1, row.at_1_interval), ranged(row.at_5, row.at_5_interval))
        rows.append((eps, "all together", *served))
        if row.companion is not None:
            own = ranged(row.companion, row.companion_interval)
            rows.append((eps, "companion alone, same effort", own, own))
        if row.cascade_1 is not None:
            behind = (ranged(row.cascade_1, row.cascade_1_interval), ranged(row.cascade_5, row.cascade_5_interval))
            rows.append((eps, "all behind the cascade", *behind))
        if row.half is not None:
            half = ranged(row.half, row.half_interval)
            rows.append((eps, "the companion's error at half the eps, to compare with", half, half))
    effort = f"{found.targets} targets x {found.steps} steps, n = {found.n}, at the gateway's cutoffs."
    if any(row.companion is not None for row in found.rows.values()):
        note = (
            "`companion alone`: its own error under the same attacks. A wrong answer that the companion shares raises "
            "no objection."
        )
    else:
        note = "This bundle has no companion, without which such an attacker is not stopped."
    return [effort, Table(("eps", "attacked", "alpha 1 %", "alpha 5 %"), rows), note]


def _show_systems(found: Systems) -> Body:
    rows = [
        (
            eps,
            system_title(system),
            ranged(row.at_1, row.at_1_interval),
            ranged(row.at_5, row.at_5_interval),
            ranged(row.at_10, row.at_10_interval),
        )
        for eps, part in by_eps(found)
        for system, row in part.items()
    ]
    return [Table(("eps", "system", *(f"{100 * rate:g} % flags" for rate in RATES)), rows)]


def _show_stages(found: Stages) -> Body:
    rows = [(eps, name, str(count)) for eps, counts in by_eps(found) for name, count in counts.items()]
    return [Table(("eps", "attack", "images"), rows)]


PLACES = (
    Place(
        "adaptive",
        "An attacker who knows everything",
        "White-box attacks on all parts of the defence at once: share of images answered wrong and not flagged. This "
        "is the figure to plan with; a stronger attack may find more.",
        "knows",
        Adaptive,
        _show,
        leading=True,
    ),
    Place(
        "systems",
        "Systems against an attacker who knows them",
        "Wrong and not flagged, where each system flags that share of the benign test images. An image counts at the "
        "worst of all attacks, and every system meets all of them.",
        "knows",
        Systems,
        _show_systems,
        leading=True,
    ),
    Place(
        "stages",
        "Which attack won",
        "Images won on the system as served at alpha 5 %, by the attack that won them first.",
        "measured",
        Stages,
        _show_stages,
    ),
)
UNITS = tuple(
    Unit(
        f"adaptive_{eps}",
        "4",
        f"adaptive attacks at {eps}/255",
        partial(adaptive, eps=eps),
        AdaptiveSection,
        places=PLACES,
        figures={
            f"joint_{eps}": f"wrong and not flagged under the joint attack at {eps}/255, alpha 5 %",
            f"joint_{eps}_0.01": f"wrong and not flagged under the joint attack at {eps}/255, alpha 1 %",
            f"joint_excess_{eps}": f"joint attack at {eps}/255 beyond the companion's own error, alpha 5 %",
        },
        count="adaptive",
        depends=EFFORT,
        seconds=10,
        verified=8,
        version=2,
    )
    for eps in (4, 8)
)
