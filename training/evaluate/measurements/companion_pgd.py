"""Level 2: the companion alone under PGD."""

from __future__ import annotations

from functools import partial

from training.evaluate.harness.alone import Standing, pgd_rows, standing_section
from training.evaluate.harness.bench import Bench
from training.evaluate.harness.found import Figure, Found
from training.evaluate.harness.shown import Body, Table, by_eps, ranged
from training.evaluate.harness.unit import Place, Unit


def companion_pgd(bench: Bench, *, eps: int) -> Found:
    """Accuracy of the companion alone under PGD: right before and after."""
    standing = pgd_rows(bench, "companion", eps=eps, count=bench.settings.robust)["standing"]
    section, key = standing_section(bench, standing, eps=eps, restarts=1), f"pgd50_{eps}"
    return Found(section, {key: Figure(key, at=("companion_pgd", f"eps_{eps}", "accuracy"))}, {key: standing})


def _show(found: dict[str, Standing]) -> Body:
    rows = [
        (f"PGD-{row.steps}", eps, ranged(row.accuracy, row.accuracy_interval), f"{row.n:,}")
        for eps, row in by_eps(found)
    ]
    return [Table(("attack", "eps", "accuracy left", "n"), rows)]


PLACE = Place(
    "companion_pgd",
    "The companion alone under PGD",
    "Accuracy of the adversarially trained network. PGD has one random start, searches in bfloat16 where the machine "
    "is made for it, and is judged in float32; any iterate that fools counts.",
    "knows",
    dict[str, Standing],
    _show,
)
UNITS = tuple(
    Unit(
        f"companion_pgd_{eps}",
        "2",
        f"companion, PGD {eps}/255",
        partial(companion_pgd, eps=eps),
        Standing,
        ("companion_pgd", f"eps_{eps}"),
        (PLACE,),
        figures={f"pgd50_{eps}": f"companion under PGD-50, {eps}/255"},
        count="robust",
        depends=("steps",),
        seconds=0.09,
        verified=256,
        companion=True,
    )
    for eps in (4, 8)
)
