"""What calibration on changed images gains and costs: `python -m studies.benign BUNDLE --work FOLDER`.

The bundle is calibrated anew on select and calibrate images of which half are under a change that no attacker made
(`training.bundling.calibrate.Benign`), and judges what an evaluation's work folder has: answers to test images as they
are, under every change, and under attacks whose makers do not know the defence. The shipped calibration stays as it is.
"""

from __future__ import annotations

import dataclasses
import tempfile
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console
from rich.table import Table

from benchmarks.record import record
from gateway.core.loading import load_bundle
from gateway.core.verdict import Judge
from training.attacks.listed import ATTACKS
from training.bundling.calibrate import CALIBRATION, Benign, benign_scores, calibrate
from training.bundling.provenance import made_with
from training.commands.terminal import JsonPath, Threads, command, progress_bars, use_threads
from training.data.corruptions import CHANGES, NOISES, changed
from training.evaluate.harness.attacked import answered
from training.evaluate.harness.bench import Bench
from training.evaluate.harness.store import Store
from training.recipes.evaluation import ALPHAS
from training.util.statistics import interval

MILD = ["jpeg_90", "resize_75", "blur_0.5", "dark_60", "contrast_50", "shift_1", "rotate_5", "noise_0.02"]
VARIANTS = {
    "as they are": Benign(),
    "half mild": Benign(changes=MILD),
    "half mild or dark": Benign(changes=[*MILD, "dark_30"]),
}


def judge_of(bench: Bench, benign: Benign) -> Judge:
    """The bundle's judge, had it been calibrated on such images."""
    bundle, engine, like = bench.bundle, bench.pipeline.engine, bench.bundle.calibration("cpu")
    scores = benign_scores(
        engine, bundle.manifest.input, bench.data, bench.progress, benign=benign, seed=bench.settings.seed
    )
    with tempfile.TemporaryDirectory() as folder:
        made = calibrate(
            scores,
            names=bundle.manifest.scores,
            fused=like.fused,
            guard=like.guard,
            provider=like.provider,
            precision=like.precision,
            graphs_sha256=like.graphs_sha256,
            out=Path(folder),
            counted=like.counted,
            seed=bench.settings.seed,
        )
        with np.load(Path(folder) / CALIBRATION, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    return Judge(dataclasses.replace(bundle, arrays=bundle.arrays | arrays), made)


def seen(bench: Bench) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """By name, the graph's scores (N, S) and groups (N,) of test images, changed ones, and attacks that fool."""
    test, clean = bench.first(bench.settings.shifts), bench.clean
    found = {"clean": (clean.scores, bench.data.test.group)}
    for name in (*CHANGES, *NOISES):
        images, depends = changed(test.x, name, seed=bench.settings.seed), {"seed": bench.settings.seed}
        answers = bench.answers(f"shift: {name}", f"shift-{name}", images, depends)
        found[name] = answers.scores, test.group
    for name, attack in ATTACKS.items():
        made, answers = answered(bench, name)
        fooled = answers.raw != made.clean.y
        found[attack.title] = answers.scores[fooled], made.clean.group[fooled]
    return found


def main(
    bundle: Annotated[Path, typer.Argument(help="Bundle to calibrate anew.")] = Path("models/gtsrb"),
    work: Annotated[Path, typer.Option(help="Work folder of its evaluation; missing results are measured.")] = Path(
        "runs/benign"
    ),
    json_path: JsonPath = None,
    threads: Threads = None,
) -> None:
    """Shares flagged at alpha 1 and 5 % by every variant of the calibration."""
    use_threads(threads)
    opened = load_bundle(bundle)
    data, settings = made_with(opened)
    table = Table("images", "n", *VARIANTS)
    rows: dict[str, Any] = {}
    with progress_bars() as bars:
        bench = Bench(opened, data, settings, Store(work), bars.step)
        judges = {name: judge_of(bench, benign) for name, benign in VARIANTS.items()}
        for name, (scores, group) in seen(bench).items():
            shares: dict[str, dict[str, dict[str, Any]]] = {}
            for variant, judge in judges.items():
                p = judge.p_values(scores.astype(np.float64))
                flagged = {alpha: p <= judge.cutoff(alpha) for alpha in ALPHAS}
                shares[variant] = {
                    f"alpha_{alpha:g}": {"share": float(which.mean()), "interval": interval(which, group)}
                    for alpha, which in flagged.items()
                }
            rows[name] = {"n": len(scores), **shares}
            cells = [" / ".join(f"{100 * cell['share']:.1f}" for cell in shares[each].values()) for each in VARIANTS]
            table.add_row(name, f"{len(scores):,}", *cells)
    limits = {
        name: {f"alpha_{alpha:g}": judge.fusion.limits(judge.level(alpha))[1] for alpha in ALPHAS}
        for name, judge in judges.items()
    }
    Console().print(table, "flagged at alpha 1 / 5 %, percent; the guard objects above:", limits)
    if json_path is not None:
        record(
            json_path,
            "calibration on changed images: shares of test images flagged",
            {
                "bundle": f"{opened.name} {opened.version}",
                "seed": settings.seed,
                "variants": {name: benign.model_dump(mode="json") for name, benign in VARIANTS.items()},
                "guard_limits": limits,
                "rows": rows,
            },
        )


if __name__ == "__main__":
    typer.run(command(main))
