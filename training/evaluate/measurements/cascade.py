"""Level 0: benign test images behind the cascade's screen; units of attacks add their rows to its section."""

from __future__ import annotations

from pydantic import Field

from training.attacks.listed import ATTACKS
from training.evaluate.harness.attacked import flags
from training.evaluate.harness.bench import Bench
from training.evaluate.harness.found import Found
from training.evaluate.harness.section import ByAlpha, Flagged, Section
from training.evaluate.harness.shown import Body, Table, percent
from training.evaluate.harness.unit import Place, Unit
from training.recipes.evaluation import ALPHAS


class Screened(ByAlpha):
    """Of the images that fool the answering network: the share that passes the screen, and flagged by the composite."""

    fooled: int
    screened: float | None


class Cascade(Section):
    """The composite of screen and verdict; without benign images until the unit `cascade` is measured."""

    n: int | None = None
    screened: float | None = None
    flagged: Flagged | None = None
    attacks: dict[str, Screened] = Field(default_factory=dict)


def cascade(bench: Bench) -> Found:
    """The composite of screen and verdict on benign test images; nothing where the bundle has none."""
    if not bench.pipeline.can_screen:
        return Found(Cascade())
    answers = bench.clean_cascade
    flagged = {f"{a:g}": float(flags(bench, answers, a, cascade=True).mean()) for a in ALPHAS}
    return Found(
        Cascade(n=len(answers), screened=float(answers.screened.mean()), flagged=Flagged.model_validate(flagged))
    )


def _show(found: Cascade) -> Body:
    if found.n is None or found.flagged is None:
        return []
    rows = [
        (
            ATTACKS[name].title if name in ATTACKS else name,
            f"{row.fooled:,}",
            percent(row.screened),
            percent(row.at_1),
            percent(row.at_5),
        )
        for name, row in found.attacks.items()
    ]
    head = ("attack on the answering network", "fooled", "let off by the screen", "flagged, alpha 1 %", "alpha 5 %")
    return [
        (
            f"The screen lets {percent(found.screened)} of benign test images off (n = {found.n:,}); the composite "
            f"flags {percent(found.flagged.at_1)} of them at alpha 1 %, {percent(found.flagged.at_5)} at 5 %."
        ),
        Table(head, rows),
    ]


PLACE = Place(
    "cascade",
    "Behind the cascade",
    "Off unless it is switched on: a screen goes first, and images that it lets off get no full verdict.",
    "benign",
    Cascade,
    _show,
)
UNIT = Unit(
    "cascade",
    "0",
    "benign test images behind the cascade",
    cascade,
    Cascade,
    ("cascade",),
    (PLACE,),
    seconds=0.008,
    companion=True,
)
