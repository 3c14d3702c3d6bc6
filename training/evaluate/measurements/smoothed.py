"""Level 4: the joint attacks on averaged gradients, since the strict score attacks by itself and may mask its own."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from training.evaluate.harness.bench import Bench
from training.evaluate.harness.found import Found
from training.evaluate.harness.section import ByAlpha, Section
from training.evaluate.harness.shown import Body, Table, percent
from training.evaluate.harness.suite import JITTER, JOINT, SAMPLES, carry_out, stages, stricter, suite, union_of
from training.evaluate.harness.systems import DOUBTS, Systems
from training.evaluate.harness.unit import Place, Unit
from training.evaluate.measurements.adaptive import EFFORT
from training.recipes.evaluation import ALPHAS


class Smoothed(Section):
    """What is won, and what with gradients averaged over `samples` images within `jitter` (of 1), on `n` images."""

    samples: int
    jitter: float
    n: int
    once: ByAlpha
    averaged: ByAlpha


def smoothed(bench: Bench) -> Found:
    """The joint attacks at 8/255 with gradients averaged over noise, on the images that stood without."""
    settings, systems = bench.settings, Systems(bench)
    effort: dict[str, Any] = {"eps": 8, "count": settings.doubled, "steps": settings.adaptive_steps}
    rows, columns = suite(bench, **effort)
    plan = [stage for stage in stages(systems) if stage.name == JOINT]
    plan += [stage for stage in stricter(systems) if stage.name.startswith(JOINT)]
    near = None if bench.defence.companion is None else DOUBTS
    plan = [replace(stage, name=f"{stage.name}, averaged", given=near) for stage in plan]
    more = carry_out(bench, systems, plan, "adaptive-smoothed", samples=SAMPLES, before=rows, **effort)
    section: dict[str, Any] = {"samples": SAMPLES, "jitter": JITTER, "n": len(rows[JOINT])}
    for name, won in (("once", union_of(rows, columns)), ("averaged", union_of(rows | more, columns))):
        section[name] = {f"alpha_{alpha:g}": float(won[f"served@{alpha:g}"].mean()) for alpha in ALPHAS}
    return Found(Smoothed.model_validate(section))


def _show(found: Smoothed) -> Body:
    rows = [
        ("1 %", percent(found.once.at_1), percent(found.averaged.at_1)),
        ("5 %", percent(found.once.at_5), percent(found.averaged.at_5)),
    ]
    return [
        (
            f"At 8/255, means over {found.samples} images within {255 * found.jitter:.0f}/255, on those that stood and "
            f"on which the companion came near to erring, n = {found.n}."
        ),
        Table(("alpha", "won", "with averaged gradients too"), rows),
    ]


UNIT = Unit(
    "smoothed",
    "4",
    "joint attack on averaged gradients",
    smoothed,
    Smoothed,
    ("smoothed",),
    (
        Place(
            "smoothed",
            "The joint attack on averaged gradients",
            "A defence that computes gradients may mask its own; averaging over noise would then win more.",
            "measured",
            Smoothed,
            _show,
        ),
    ),
    count="doubled",
    depends=EFFORT,
    seconds=6,
    version=2,
)
