"""Which networks should answer together, with which weights, and about which images (`gateway.core.pool`).

Each pool is fitted on benign images of the calibrate split, as `palisade pool` does it, and judged on benign images of
the select split and on attacks that fool the answering network there: asked about all images, and only about those that
are at least suspect. Nothing is read of test.

`python -m studies.pool BUNDLE --n 100`
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import typer
from rich.table import Table

from gateway.core.pipeline import Pipeline
from gateway.core.pool import leads, pooled
from gateway.core.rules import PoolRule
from studies.fooling import BATCH, Attacks, Benign, PerAttack, fooling, known, some_of
from studies.recovery import USUAL as LOCAL
from studies.robust import share
from training.bundling.networks import load_defence
from training.bundling.pool import fitted, opinions
from training.commands.figures import today, with_data, write_json
from training.commands.terminal import BundlePath, JsonPath, Threads, command, console, progress_bars, use_threads
from training.data.dataset import Dataset, Split
from training.models.network import Network
from training.recipes.evaluation import Evaluation
from training.served.answers import open_pipeline
from training.util.signatures import StepProgress, silent

POOLS: dict[str, tuple[float, float, float] | None] = {
    "none": None,
    "companion": (0.0, 1.0, 0.0),
    "answering .5, companion": (0.5, 1.0, 0.0),
    "answering .5, fields .8": (0.5, 1.0, 0.8),
    "answering .25, fields .5": (0.25, 1.0, 0.5),
    "answering .25, fields 1": (0.25, 1.0, 1.0),
    "answering .1, fields .6": (0.1, 1.0, 0.6),
    "all alike": (1.0, 1.0, 1.0),
}
"""Weights of answering network, companion and network of small fields; 0: not asked."""
USUAL = (*LOCAL, "half_shadow", "rain", "colour_cast", "fgsm_8", "pgd_8", "l2_1", "square_8", "sparse")


@dataclass(frozen=True)
class Seen:
    """N images: labels and groups, every network's logits (N, K), which are suspect, and the answers that are served
    without a pool."""

    truth: np.ndarray
    group: np.ndarray
    opinions: tuple[np.ndarray, np.ndarray, np.ndarray | None]
    suspect: np.ndarray
    without: np.ndarray

    def asked(self, weights: tuple[float, float, float]) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        """Logits of those that the weights ask."""
        answering, companion, field = self.opinions
        return answering, companion, field if weights[2] else None

    def served(self, rule: PoolRule | None, *, gated: bool = False) -> np.ndarray:
        """Labels (N,) that are served: the pool is asked about all images, or, `gated`, about suspect ones."""
        if rule is None:
            return self.without
        answering, companion, field = self.opinions
        first = answering.argmax(1)
        best, lead = leads(pooled(rule, answering, companion, field if rule.small_field else None), first)
        asked = self.suspect | (not gated)
        return np.where(asked & (lead >= rule.threshold) & (self.without == first), best, self.without)


def seen(pipeline: Pipeline, split: Split, name: str, progress: StepProgress) -> Seen:
    """A split as a pipeline without a pool sees it."""
    suspect, without = [], []
    for start in range(0, len(split), BATCH):
        images = list(split.x[start : start + BATCH])
        for decision in pipeline.decide_images(images, explain=False):
            suspect.append(decision.raw.verdict.gated)
            without.append(decision.served.prediction.index)
        progress(name, start + len(images), len(split))
    return Seen(split.y, split.group, opinions(pipeline, split.x), np.array(suspect), np.array(without))


def pool_report(
    pipeline: Pipeline,
    network: Network,
    data: Dataset,
    *,
    names: Sequence[str] = USUAL,
    n: int = 100,
    benign: int | None = None,
    seed: int = 0,
    progress: StepProgress = silent,
) -> dict[str, Any]:
    """Each pool's clean accuracy, and what it answers rightly of attacks on select; JSON content."""
    fit = seen(pipeline, some_of(data.calibrate, benign, seed=seed, stage=1), "calibrate, benign", progress)
    clean = seen(pipeline, some_of(data.select, benign, seed=seed, stage=2), "select, benign", progress)
    attacked = {
        name: seen(pipeline, fooling(network, data.select, name, n, Evaluation(), seed), f"select, {name}", progress)
        for name in names
    }
    pools: dict[str, Any] = {}
    for title, weights in POOLS.items():
        if weights is not None and weights[2] and fit.opinions[2] is None:
            continue
        rule = None if weights is None else fitted(*fit.asked(weights), fit.truth, fit.group, weights=weights)
        right, before = clean.served(rule) == clean.truth, clean.without == clean.truth
        pools[title] = {
            "threshold": None if rule is None else rule.threshold,
            "clean": share(right, clean.group),
            "harmed": share(before & ~right, clean.group),
            "right": {name: share(of.served(rule) == of.truth, of.group) for name, of in attacked.items()},
            "right_of_suspect": {
                name: share(of.served(rule, gated=True) == of.truth, of.group) for name, of in attacked.items()
            },
        }
    return {"seed": seed, "fitted_on": len(fit.truth), "pools": pools}


def pool_table(report: dict[str, Any]) -> Table:
    """A row for each attack, a column for each pool: asked about suspect images alone, and about all."""
    pools = report["pools"]
    table = Table(
        "select, % right", *(f"{title}, from a lead of {pool['threshold'] or 0:.2f}" for title, pool in pools.items())
    )
    for row in ("clean", "harmed"):
        table.add_row(f"benign, {row}", *(f"{100 * pool[row]['mean']:.2f}" for pool in pools.values()))
    for name in next(iter(pools.values()))["right"]:
        shares = [
            [100 * pool[which][name]["mean"] for which in ("right_of_suspect", "right")] for pool in pools.values()
        ]
        table.add_row(name, *(f"{gated:.0f}, {of_all:.0f}" for gated, of_all in shares))
    return table


def main(
    bundle: BundlePath = Path("models/gtsrb"),
    json_path: JsonPath = None,
    n: PerAttack = 100,
    benign: Benign = None,
    attack: Attacks = None,
    seed: int = 0,
    threads: Threads = None,
) -> None:
    """Compare pools of networks on the select split."""
    use_threads(threads)
    loaded, data = with_data(bundle)
    names = known(attack or list(USUAL))
    with progress_bars() as bars:
        report = pool_report(
            open_pipeline(loaded),
            load_defence(loaded).network,
            data,
            names=names,
            n=n,
            benign=benign,
            seed=seed,
            progress=bars.step,
        )
    if json_path:
        subject = {"subject": f"{loaded.name} {loaded.version}", "date": today(), "split": "select"}
        write_json(json_path, subject | report)
    console.print(pool_table(report))
    console.print(
        f"select split, about {n} images of each attack that fool; asked about suspect images alone, and about all"
    )


if __name__ == "__main__":
    typer.run(command(main))
