"""The units of evaluation, one line for each file that declares them, and how to choose among them."""

from __future__ import annotations

from collections.abc import Sequence

from training.errors import TrainingError
from training.evaluate.harness.unit import LEVELS, Unit, figures_of
from training.evaluate.measurements import (
    adaptive,
    autoattack,
    benign,
    cascade,
    certificates,
    companion_pgd,
    control,
    curve,
    doubled,
    explanations,
    gradients,
    harm,
    layers,
    patch_adaptive,
    pictures,
    pool,
    queries,
    shifts,
    small_field,
    smoothed,
    unaware,
    votes,
)
from training.recipes.evaluation import Bound

UNITS: dict[str, Unit] = {
    unit.name: unit
    for unit in (
        benign.UNIT,
        cascade.UNIT,
        shifts.UNIT,
        *companion_pgd.UNITS,
        *autoattack.UNITS,
        control.UNIT,
        gradients.UNIT,
        curve.UNIT,
        *unaware.UNITS,
        *adaptive.UNITS,
        doubled.UNIT,
        smoothed.UNIT,
        patch_adaptive.UNIT,
        *votes.UNITS,
        *pool.UNITS,
        harm.UNIT,
        queries.UNIT,
        explanations.UNIT,
        layers.UNIT,
        certificates.UNIT,
        small_field.UNIT,
        pictures.UNIT,
    )
}

BASIC = (
    "benign",
    "cascade",
    "companion_pgd_4",
    "companion_pgd_8",
    "pgd_4",
    "pgd_8",
    "patch",
    "adaptive_4",
    "adaptive_8",
)
"""What `palisade build` measures, level `basic`; `palisade evaluate` measures the rest."""


def figures() -> dict[str, str]:
    """Titles of the headline figures by name, those of every unit."""
    return figures_of(UNITS.values())


def known_figures(bounds: Sequence[Bound]) -> None:
    """`TrainingError` that names the first bound on a figure that no unit measures."""
    known = figures()
    for bound in bounds:
        if bound.figure not in known:
            raise TrainingError(f"bounds: unknown figure {bound.figure!r}; there are {', '.join(known)}")


def chosen(levels: Sequence[str] = (), only: Sequence[str] = ()) -> list[str]:
    """Names of the units of `levels` (`basic`, `all` as well) and of those named `only`; all without either.

    Raises `TrainingError` for unknown ones.
    """
    if unknown := sorted(set(levels) - set(LEVELS) - {"all", "basic"}):
        raise TrainingError(f"unknown level {unknown[0]!r}; there are {', '.join(LEVELS)}, basic and all")
    if unknown := sorted(set(only) - set(UNITS)):
        raise TrainingError(f"unknown unit {unknown[0]!r}; there are {', '.join(UNITS)}")
    if "all" in levels or not (levels or only):
        return list(UNITS)
    named = {*only, *(BASIC if "basic" in levels else ())}
    return [name for name, unit in UNITS.items() if unit.level in levels or name in named]
