"""Level 2: the security curve of either network alone."""

from __future__ import annotations

from training.evaluate.harness.alone import ROLES, pgd_rows
from training.evaluate.harness.bench import Bench
from training.evaluate.harness.found import Found
from training.evaluate.harness.section import Section
from training.evaluate.harness.shown import Body, Table, percent
from training.evaluate.harness.unit import Place, Unit

RADII = (0.0, 1.0, 2.0, 4.0, 6.0, 8.0, 12.0, 16.0, 24.0, 32.0, 64.0, 128.0, 255.0)
"""Radii of the security curve, of 255; at 255 any image may become any other."""
FAR, FAR_RESTARTS = 64, 4  # far out a single start may end where gradients vanish


class Curve(Section):
    """{radius: accuracy} of each network."""

    n: int
    steps: int
    answering: dict[str, float]
    companion: dict[str, float] | None = None


def curve(bench: Bench) -> Found:
    """Security curve: accuracy of either network alone under PGD, over radii up to the whole range of pixels."""
    count = len(bench.first(bench.settings.curve))
    found = {}
    for role in bench.networks:
        points = {}
        for eps in RADII:
            if eps == 0:
                points["0"] = float((bench.labels[role] == bench.test.y)[:count].mean())
            else:
                restarts = FAR_RESTARTS if eps >= FAR else 1
                rows = pgd_rows(bench, role, eps=eps, count=bench.settings.curve, restarts=restarts)
                points[f"{eps:g}"] = float(rows["standing"].mean())
        found[role] = points
    return Found(Curve.model_validate({"n": count, "steps": bench.settings.steps} | found))


def _show(found: Curve) -> Body:
    curves = {"answering": found.answering, "companion": found.companion}
    rows = [(ROLES[role], *map(percent, points.values())) for role, points in curves.items() if points]
    return [f"PGD-{found.steps}, n = {found.n:,}; eps of 255.", Table(("network", *found.answering), rows)]


UNIT = Unit(
    "curve",
    "2",
    "security curve",
    curve,
    Curve,
    ("curve",),
    (
        Place(
            "curve",
            "Security curve",
            "Accuracy of a network alone under PGD, by radius.",
            "knows",
            Curve,
            _show,
        ),
    ),
    count="curve",
    depends=("steps",),
    seconds=0.7,
)
