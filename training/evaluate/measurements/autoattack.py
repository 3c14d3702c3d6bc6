"""Level 2: the companion alone under AutoAttack."""

from __future__ import annotations

from functools import partial

import numpy as np
import torch

from training.attacks.autoattack import autoattack
from training.attacks.coarse import searched
from training.evaluate.harness.bench import Bench, as_images
from training.evaluate.harness.found import Figure, Found
from training.evaluate.harness.section import Interval, Section
from training.evaluate.harness.shown import Body, Table, by_eps, percent, ranged
from training.evaluate.harness.store import Arrays
from training.evaluate.harness.unit import Place, Unit
from training.util.module_modes import frozen
from training.util.statistics import interval

CHUNK = 64


class AutoAttacked(Section):
    """Accuracy that AutoAttack leaves, Linf of `eps` / 255, and the share of images that fell to each of its stages."""

    n: int
    eps: float
    version: str
    accuracy: float
    accuracy_interval: Interval
    fell_to: dict[str, float]


def autoattacked(bench: Bench, *, eps: int) -> Found:
    """AutoAttack (standard) on the companion alone: which images withstand it, and which stage fools each other one."""
    test = bench.first(bench.settings.autoattack)
    predict = searched(bench.networks["companion"])

    def make(start: int, stop: int, _generator: torch.Generator) -> Arrays:
        part = test.take(np.arange(start, stop))
        with frozen(bench.defence):
            done = autoattack(
                predict,
                bench.pixels(part.x),
                bench.targets(part.y),
                eps=eps / 255,
                seed=bench.settings.seed,
                batch=stop - start,
            )
        fell_to = np.array(["", *done.stages])[done.fell_to.cpu().numpy() + 1]
        return {"images": as_images(done.adversarial), "standing": done.robust.cpu().numpy(), "fell_to": fell_to}

    title = f"companion, AutoAttack at {eps}/255"
    rows = bench.rows(title, f"autoattack-{eps}", {}, len(test), CHUNK, make)
    standing, key = rows["standing"], f"autoattack_{eps}"
    section = AutoAttacked(
        n=len(test),
        eps=eps,
        version="standard",
        accuracy=float(standing.mean()),
        accuracy_interval=interval(standing, test.group),
        fell_to={str(stage): float((rows["fell_to"] == stage).mean()) for stage in np.unique(rows["fell_to"]) if stage},
    )
    return Found(section, {key: Figure(key, at=("autoattack", f"eps_{eps}", "accuracy"))}, {key: standing})


def _show(found: dict[str, AutoAttacked]) -> Body:
    rows = [
        (
            f"AutoAttack ({row.version})",
            eps,
            ranged(row.accuracy, row.accuracy_interval),
            f"{row.n:,}",
            ", ".join(f"{stage} {percent(share)}" for stage, share in row.fell_to.items()),
        )
        for eps, row in by_eps(found)
    ]
    return [Table(("attack", "eps", "accuracy left", "n", "the others fell to"), rows)]


PLACE = Place(
    "autoattack",
    "The companion alone under AutoAttack",
    "Accuracy of the adversarially trained network, and what the other images fell to; those that fell to clean were "
    "wrong before any attack.",
    "knows",
    dict[str, AutoAttacked],
    _show,
)
UNITS = tuple(
    Unit(
        f"autoattack_{eps}",
        "2",
        f"companion, AutoAttack {eps}/255",
        partial(autoattacked, eps=eps),
        AutoAttacked,
        ("autoattack", f"eps_{eps}"),
        (PLACE,),
        figures={f"autoattack_{eps}": f"companion under AutoAttack, {eps}/255"},
        count="autoattack",
        seconds=4,
        verified=32,
        companion=True,
    )
    for eps in (4, 8)
)
