"""Level 2: the undefended network under an attack that must break it if the harness works."""

from __future__ import annotations

from training.evaluate.harness.alone import Standing, pgd_rows, standing_section
from training.evaluate.harness.bench import Bench
from training.evaluate.harness.found import Figure, Found
from training.evaluate.harness.shown import Body, Table, ranged
from training.evaluate.harness.unit import Place, Unit

EPS, RESTARTS = 16.0, 3


def control(bench: Bench) -> Found:
    """The undefended network under PGD at a large radius with restarts: a working harness leaves next to nothing."""
    rows = pgd_rows(bench, "answering", eps=EPS, count=bench.settings.control, restarts=RESTARTS)
    section = standing_section(bench, rows["standing"], eps=EPS, restarts=RESTARTS)
    return Found(section, {"control": Figure("control", at=("control", "accuracy"))}, {"control": rows["standing"]})


def _show(row: Standing) -> Body:
    title = f"control: the undefended network, PGD-{row.steps}, {row.restarts} restarts"
    accuracy = ranged(row.accuracy, row.accuracy_interval)
    return [Table(("attack", "eps", "accuracy left", "n"), [(title, f"{row.eps:g}/255", accuracy, f"{row.n:,}")])]


UNIT = Unit(
    "control",
    "2",
    "undefended control",
    control,
    Standing,
    ("control",),
    (
        Place(
            "control",
            "The undefended network under attack",
            "A working harness leaves next to nothing of it.",
            "measured",
            Standing,
            _show,
        ),
    ),
    figures={"control": "answering network under PGD at a large radius"},
    count="control",
    depends=("steps",),
    seconds=0.02,
    verified=64,
)
