"""How many answers are agreed or proved against a square patch, by patch size and by class, and what that costs.

Images of the test split as they are, certified by the gateway's own certifier on the label that is served
(`gateway.core.certificate`). A label that is agreed and wrong, or proved and wrong, is counted apart: no certificate
states that a label is right.

`python -m studies.certified BUNDLE --n 1000 --patch 5 --patch 3`
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.table import Table

from gateway.core.certificate import CertificateWanted, Level
from gateway.core.engine import Engine
from gateway.core.masks import MaskSet, default_k
from gateway.core.pipeline import Pipeline
from training.commands.figures import today, with_data, write_json
from training.commands.terminal import BundlePath, JsonPath, command, console, progress_bars
from training.data.dataset import Split
from training.errors import TrainingError
from training.served.scoring import batches
from training.util.signatures import StepProgress, silent
from training.util.statistics import interval

LEVELS: tuple[Level, ...] = ("none", "agreed", "proved")


def certified_report(
    pipeline: Pipeline,
    split: Split,
    patches: list[int],
    *,
    n: int,
    k: int | None = None,
    seed: int = 0,
    progress: StepProgress = silent,
) -> dict[str, Any]:
    """Shares of `n` images of a split by level, for square patches of the sides `patches` with `k` masks an axis.

    `k` defaults to the gateway's. Raises `TrainingError` where the split has fewer images.
    """
    if n > len(split):
        raise TrainingError(f"the split has {len(split)} images, {n} are asked for")
    chosen = split.take(np.random.default_rng(seed).permutation(len(split))[:n])
    decisions = []
    for some in batches(chosen.x, 32):
        decisions += pipeline.decide_images(list(some), explain=False)
        progress("answers", len(decisions), n)
    right = np.array([decision.served.prediction.index for decision in decisions]) == chosen.y
    height, width = chosen.x.shape[1:3]
    sizes: dict[str, Any] = {}
    for patch in patches:
        wanted = CertificateWanted(MaskSet(height, width, patch, k or default_k(height, width)))
        levels, forwards, spent = [], [], []
        for i, decision in enumerate(decisions):
            start = time.process_time()
            found = pipeline.certified(decision, wanted).certificate
            spent.append(1000 * (time.process_time() - start))
            assert found is not None
            levels.append(found.level)
            forwards.append(found.forwards)
            progress(f"patch {patch}", i + 1, n)
        sizes[str(patch)] = {
            "masks": len(wanted.masks),
            "share_of_image": wanted.masks.share,
            **_shares(np.array(levels), right, chosen, pipeline.bundle.manifest.classes),
            "cost": _cost(np.array(levels), np.array(forwards), np.array(spent)),
        }
    return {"n": n, "seed": seed, "right": float(right.mean()), "patches": sizes}


def _shares(levels: np.ndarray, right: np.ndarray, split: Split, classes: list[str]) -> dict[str, Any]:
    agreed, proved = levels != "none", levels == "proved"
    by_class = {}
    for label, name in enumerate(classes):
        of = split.y == label
        if of.any():
            shares = {"agreed": float((agreed & right)[of].mean()), "proved": float((proved & right)[of].mean())}
            by_class[name] = {"n": int(of.sum()), **shares}

    def cell(which: np.ndarray) -> dict[str, Any]:
        return {"mean": float(which.mean()), "interval": interval(which, split.group)}

    return {
        "agreed_and_right": cell(agreed & right),
        "proved_and_right": cell(proved & right),
        "agreed_and_wrong": int((agreed & ~right).sum()),
        "proved_and_wrong": int((proved & ~right).sum()),
        "by_class": by_class,
    }


def _cost(levels: np.ndarray, forwards: np.ndarray, spent: np.ndarray) -> dict[str, Any]:
    """Mean forward passes, and the median of processor milliseconds, of the certificates that end at each level."""
    return {
        level: {
            "n": int(of.sum()),
            "forwards": float(forwards[of].mean()),
            "milliseconds": float(np.median(spent[of])),
        }
        for level in LEVELS
        if (of := levels == level).any()
    }


def certified_tables(report: dict[str, Any]) -> list[Table]:
    """The report as tables for a terminal."""
    shares = Table("patch", "masks", "agreed and right", "proved and right", "agreed, wrong", "proved, wrong")
    cost = Table("patch", *(f"{level}: {what}" for level in LEVELS for what in ("forwards", "ms")))
    for patch, found in report["patches"].items():
        cells = [
            "{:.1f} [{:.1f}, {:.1f}]".format(*(100 * value for value in (cell["mean"], *cell["interval"])))
            for cell in (found["agreed_and_right"], found["proved_and_right"])
        ]
        shares.add_row(
            patch, str(found["masks"]), *cells, str(found["agreed_and_wrong"]), str(found["proved_and_wrong"])
        )
        row = [found["cost"].get(level) for level in LEVELS]
        cost.add_row(
            patch,
            *(text for c in row for text in ((f"{c['forwards']:.1f}", f"{c['milliseconds']:.0f}") if c else "--")),
        )
    return [shares, cost]


def main(
    bundle: BundlePath = Path("models/gtsrb"),
    json_path: JsonPath = None,
    n: Annotated[int, typer.Option("--n", min=2, help="Number of test images.")] = 1000,
    patch: Annotated[list[int] | None, typer.Option(min=1, help="Side of the patch; may be repeated.")] = None,
    k: Annotated[int | None, typer.Option(min=1, help="Masks an axis (default: the gateway's).")] = None,
    seed: int = 0,
    threads: Annotated[int, typer.Option(min=1, help="Threads of ONNX Runtime.")] = 1,
) -> None:
    """Share of the test split's answers that are agreed and proved, and what certificates cost."""
    loaded, data = with_data(bundle)
    pipeline = Pipeline.on(Engine.open(loaded, device="cpu", threads=threads), loaded, action="sanitize", pool=False)
    with progress_bars() as bars:
        report = certified_report(pipeline, data.test, patch or [5, 3], n=n, k=k, seed=seed, progress=bars.step)
    report = {"subject": f"{loaded.name} {loaded.version}", "date": today(), "split": "test", **report}
    if json_path:
        write_json(json_path, report)
    for table in certified_tables(report):
        console.print(table)
    console.print(f"{loaded.name} {loaded.version}, test split, n = {n}, seed {seed}: %, [95 % interval over groups]")


if __name__ == "__main__":
    typer.run(command(main))
