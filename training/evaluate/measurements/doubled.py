"""Level 4: the joint attack with twice the steps, to see whether its effort was enough."""

from __future__ import annotations

from collections.abc import Sequence

from training.evaluate.harness.bench import Bench
from training.evaluate.harness.found import Found
from training.evaluate.harness.section import Section
from training.evaluate.harness.shown import Body, Table, percent
from training.evaluate.harness.suite import GUARD_STAGE, JOINT, SERVED, suite, union_of
from training.evaluate.harness.systems import ALONE
from training.evaluate.harness.unit import Place, Unit
from training.evaluate.measurements.adaptive import EFFORT


class Won(Section):
    """Shares won on the system as served and, where there is one, on the companion."""

    served: float
    companion: float | None = None


class Doubled(Section):
    """What is won with `steps`, and with twice as many on the same `n` images."""

    steps: int
    n: int
    once: Won
    twice: Won


def doubled(bench: Bench) -> Found:
    """The joint attack at 8/255 with twice the steps, and the companion's error under them, on the same images."""
    only, steps = (ALONE, GUARD_STAGE, JOINT), bench.settings.adaptive_steps
    n, once = _won(bench, only, steps=steps)
    _, twice = _won(bench, only, steps=2 * steps)
    return Found(Doubled(steps=steps, n=n, once=once, twice=twice))


def _won(bench: Bench, only: Sequence[str], *, steps: int) -> tuple[int, Won]:
    won = union_of(*suite(bench, eps=8, count=bench.settings.doubled, steps=steps, only=only))
    served = float(won[SERVED].mean())
    if ALONE not in won:
        return len(won[SERVED]), Won(served=served)
    return len(won[SERVED]), Won(served=served, companion=float(won[ALONE].mean()))


def _show(found: Doubled) -> Body:
    rows = [("the system as served", percent(found.once.served), percent(found.twice.served))]
    if found.once.companion is not None:
        rows.append(("the companion", percent(found.once.companion), percent(found.twice.companion)))
    return [
        f"At 8/255, alpha 5 %, n = {found.n}.",
        Table(("won on", f"{found.steps} steps", f"{2 * found.steps} steps"), rows),
    ]


UNIT = Unit(
    "doubled",
    "4",
    "joint attack with twice the steps",
    doubled,
    Doubled,
    ("doubled",),
    (
        Place(
            "doubled",
            "The joint attack with twice the steps",
            "If twice the work wins more, the figures of the attacker who knows everything are too low.",
            "measured",
            Doubled,
            _show,
        ),
    ),
    count="doubled",
    depends=EFFORT,
    seconds=8,
)
