"""Which second answers to serve: rules compared by what they take from benign images and what they recover.

Behind the gate the suspicious window is inpainted and the network asked again. Each rule is fitted on gated benign
images of the calibrate split, as the calibration does it (`training.bundling.calibrate.fit_recovery`), and judged on
benign images of the select split and on attacks that fool the answering network there. Nothing is read of test.

`python -m studies.recovery BUNDLE --n 150`
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import typer
from rich.table import Table

from gateway.core.manifest import Recovery
from gateway.core.pipeline import Pipeline
from gateway.core.verdict import lead, preference
from studies.fooling import BATCH, Attacks, Benign, PerAttack, fooling, known, some_of
from studies.robust import share
from training.bundling.calibrate import allowed_count, fit_recovery
from training.bundling.networks import load_defence
from training.commands.figures import today, with_data, write_json
from training.commands.terminal import BundlePath, JsonPath, Threads, command, console, progress_bars, use_threads
from training.data.dataset import Dataset, Split
from training.models.network import Network
from training.recipes.evaluation import Evaluation
from training.served.answers import open_pipeline
from training.util.signatures import StepProgress, silent

RULES = {
    "1 point": (0.01, False),
    ".2 points": (0.002, False),
    ".2 points, with the companion's preference": (0.002, True),
}
"""What benign images may lose, and whether the companion is heard."""
USUAL = ("patch", "patch_low", "strip", "strip_smooth", "oblong_smooth", "pair", "bars", "dull_sticker")


@dataclass(frozen=True)
class Seen:
    """N images behind the pipeline, (N,) each; where there was no second pass the second label is the first one."""

    truth: np.ndarray
    group: np.ndarray
    gated: np.ndarray
    first: np.ndarray
    second: np.ndarray
    contrast: np.ndarray
    clear: np.ndarray
    prefers: np.ndarray

    def served(self, rule: Recovery | None) -> np.ndarray:
        """The labels (N,) that are served by a rule."""
        if rule is None:
            return self.first
        strength = rule.strength(self.contrast, self.clear, self.prefers)
        return np.where(self.gated & (strength >= rule.threshold), self.second, self.first)


def seen(pipeline: Pipeline, split: Split, name: str, progress: StepProgress) -> Seen:
    """A split as the pipeline sees it."""
    rows: list[tuple[Any, ...]] = []
    for start in range(0, len(split), BATCH):
        for decision in pipeline.decide_images(list(split.x[start : start + BATCH]), explain=False):
            raw, done = decision.raw, decision.neutralized
            after = raw if done is None else done.result
            gated = done is not None and raw.verdict.gated
            labels = [np.array([each.prediction.index]) for each in (raw, after)]
            opinion = raw.outputs.companion_logits
            rows.append(
                (
                    gated,
                    labels[0][0],
                    labels[1][0],
                    0.0 if raw.whole is None else float(raw.whole.roa_score),
                    float(lead(after.outputs.logits[None])[0]),
                    0.0 if opinion is None else float(preference(opinion[None], *labels)[0]),
                )
            )
        progress(name, len(rows), len(split))
    return Seen(split.y, split.group, *(np.array(column) for column in zip(*rows, strict=True)))


def recovery_report(
    pipeline: Pipeline,
    network: Network,
    data: Dataset,
    effort: Evaluation,
    *,
    names: Sequence[str] = USUAL,
    n: int = 150,
    benign: int | None = None,
    seed: int = 0,
    progress: StepProgress = silent,
) -> dict[str, Any]:
    """Each rule's clean accuracy and recovered attacks on select; JSON content.

    `benign` images of each split are looked at (None: all).
    """

    fit = seen(pipeline, some_of(data.calibrate, benign, seed=seed, stage=1), "calibrate, benign", progress)
    clean = seen(pipeline, some_of(data.select, benign, seed=seed, stage=2), "select, benign", progress)
    attacked = {
        name: seen(pipeline, fooling(network, data.select, name, n, effort, seed), f"select, {name}", progress)
        for name in names
    }
    effect, rows = pipeline.judge.calibration.design_effect, np.flatnonzero(fit.gated)
    lost = (fit.first == fit.truth).astype(int) - (fit.second == fit.truth)
    rules: dict[str, Any] = {}
    for title, (cost, heard) in RULES.items():
        rule = fit_recovery(
            fit.contrast[rows],
            fit.clear[rows],
            lost[rows],
            fit.prefers[rows] if heard else None,
            allowed=allowed_count(len(fit.truth), len(fit.truth) / effect, share=cost),
        )
        after, before = clean.served(rule) == clean.truth, clean.first == clean.truth
        rules[title] = {
            "rule": None if rule is None else rule.model_dump(),
            "clean": {"before": float(before.mean()), "after": float(after.mean()), "n": len(after)},
            "harmed": share(before & ~after, clean.group),
            "recovered": {name: share(of.served(rule) == of.truth, of.group) for name, of in attacked.items()},
        }
    return {"seed": seed, "fitted_on": len(fit.truth), "gated": len(rows), "rules": rules}


def recovery_table(report: dict[str, Any]) -> Table:
    """A row for each rule."""
    names = list(next(iter(report["rules"].values()))["recovered"])
    table = Table("benign images may lose", "clean", "harmed", *names)
    for title, found in report["rules"].items():
        cells = [f"{100 * found['recovered'][name]['mean']:.1f}" for name in names]
        table.add_row(title, f"{100 * found['clean']['after']:.2f}", f"{100 * found['harmed']['mean']:.2f}", *cells)
    return table


def main(
    bundle: BundlePath = Path("models/gtsrb"),
    json_path: JsonPath = None,
    n: PerAttack = 150,
    benign: Benign = None,
    attack: Attacks = None,
    seed: int = 0,
    threads: Threads = None,
) -> None:
    """Compare rules for serving the answer to a neutralised image, on the select split."""
    use_threads(threads)
    loaded, data = with_data(bundle)
    names = known(attack or list(USUAL))
    network = load_defence(loaded).network
    with progress_bars() as bars:
        report = recovery_report(
            open_pipeline(loaded),
            network,
            data,
            Evaluation(),
            names=names,
            n=n,
            benign=benign,
            seed=seed,
            progress=bars.step,
        )
    if json_path:
        write_json(
            json_path, {"subject": f"{loaded.name} {loaded.version}", "date": today(), "split": "select", **report}
        )
    console.print(recovery_table(report))
    before = next(iter(report["rules"].values()))["clean"]
    console.print(
        f"select split, {before['n']} benign images, {100 * before['before']:.2f} % right without; seed {seed}"
    )


if __name__ == "__main__":
    typer.run(command(main))
