"""What a p-value means on the test split, and for each class: `python -m studies.honest BUNDLE --frames npz:NAME`.

The bundle's networks are calibrated anew by rules that differ in what p-values count, on all frames of the select and
calibrate tracks: `images` (cutoffs below alpha by a confidence bound, as shipped), `groups` (flag exactly when
p <= alpha), `groups, more tracks` (the select split's tracks count, too), `groups, by class` (`studies.by_class`). The
bundle stays as it is; with `--out` the recalibrated one is written there. Reported on all test images: shares of
p-values at or below each level with intervals by track, classes before and after, and what is detected of attacks.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console
from rich.table import Table

from benchmarks.record import record
from gateway.core.engine import Engine
from gateway.core.grouped import GroupedScores, group_weights
from gateway.core.loading import Bundle, load_bundle, write_manifest
from gateway.core.manifest import Calibration
from gateway.core.verdict import Fusion, Judge
from studies.by_class import ByClass, exponent
from studies.kinds import fooling
from training.bundling.calibrate import ALPHAS, benign_scores, calibrate
from training.bundling.networks import load_defence
from training.bundling.provenance import made_with
from training.commands.terminal import JsonPath, Threads, command, progress_bars, use_threads
from training.data.dataset import Dataset, Split, load_dataset
from training.errors import TrainingError
from training.evaluate.harness.tracks import inferred_tracks
from training.served.scoring import run_batches
from training.util.atomic import draft_of
from training.util.signatures import StepProgress
from training.util.statistics import interval

COUNTS = {"pgd_8": 200, "patch": 100, "patch_low": 100}
FEWEST_IMAGES = 60


@dataclass(frozen=True)
class Looked:
    """What the graph gives of N images: scores (N, S), answers (N,), with labels (N,) and groups (N,)."""

    scores: np.ndarray
    answers: np.ndarray
    labels: np.ndarray
    groups: np.ndarray

    def and_(self, other: Looked) -> Looked:
        """Both together."""
        return Looked(*(np.concatenate(pair) for pair in zip(vars(self).values(), vars(other).values(), strict=True)))


Rule = Callable[[Looked], np.ndarray]
"""p-values (N,) of images."""


def look(engine: Engine, bundle: Bundle, split: Split, name: str, work: Path | None, progress: StepProgress) -> Looked:
    """Scores and answers of a split's images, kept in the folder `work`, if there is one."""
    file = None if work is None else work / f"looked-{name}.npz"
    if file is not None and file.is_file():
        with np.load(file, allow_pickle=False) as kept:
            return Looked(kept["scores"], kept["answers"], split.y, split.group)
    tell = lambda done, total: progress(f"looking at {name}", done, total)  # noqa: E731
    runs = run_batches(engine, split.x, bundle.manifest.input, batch=engine.buckets[-1], progress=tell)
    parts = [(run.scores, run.logits.argmax(1)) for run in runs]
    scores, answers = (np.concatenate(each) for each in zip(*parts, strict=True))
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        np.savez(file, allow_pickle=False, scores=scores, answers=answers)
    return Looked(scores, answers, split.y, split.group)


def all_frames(split: Split, source: str) -> Split:
    """Every frame that `source` has of the tracks of `split`; `TrainingError` if it lacks one."""
    every = load_dataset(source)
    parts = [every.train, every.select, every.calibrate]
    x, y, group = (np.concatenate([getattr(part, name) for part in parts]) for name in ("x", "y", "group"))
    if lost := set(split.group.tolist()) - set(group.tolist()):
        raise TrainingError(f"{source}: it lacks {len(lost)} of the tracks, such as {min(lost)}")
    chosen = np.isin(group, split.group)
    return Split(x[chosen], y[chosen], group[chosen])


def rules(bundle: Bundle, select: Looked, calibrated: Looked) -> dict[str, tuple[Rule, Callable[[float], float]]]:
    """By name: p-values, and the cutoff on them at an alpha."""
    like = bundle.calibration("cpu", "fp32")
    judge = Judge(bundle, like)
    names, classes = bundle.manifest.scores, len(bundle.manifest.classes)

    def exact(alpha: float) -> float:
        return alpha

    found: dict[str, tuple[Rule, Callable[[float], float]]] = {
        "as shipped": (lambda seen: judge.p_values(seen.scores.astype(np.float64)), judge.cutoff)
    }
    for title, benign in (("groups", calibrated), ("groups, more tracks", calibrated.and_(select))):
        scores = benign.scores.astype(np.float64)
        fusion = Fusion.fit(scores, names, like.fused, like.guard, tails=select.scores.astype(np.float64))
        statistic = fusion.own(scores)
        order = np.argsort(statistic, kind="stable")
        grouped = GroupedScores(statistic[order], group_weights(benign.groups)[order], len(np.unique(benign.groups)))
        by_class = ByClass.fit(exponent(statistic), benign.answers, benign.groups, classes=classes)
        found[title] = (_by_groups(grouped, fusion), exact)
        found[f"{title}, by class"] = (_by_class(by_class, fusion), exact)
    return found


def _by_groups(grouped: GroupedScores, fusion: Fusion) -> Rule:
    return lambda seen: grouped.p_values(fusion.statistic(seen.scores.astype(np.float64)))


def _by_class(rule: ByClass, fusion: Fusion) -> Rule:
    return lambda seen: rule.p_values(exponent(fusion.statistic(seen.scores.astype(np.float64))), seen.answers)


def measure(p: np.ndarray, cutoff: Callable[[float], float], test: Looked, classes: list[str]) -> dict[str, Any]:
    """By alpha: the share of p-values at or below it, the share flagged, both with intervals, and the classes."""
    found: dict[str, Any] = {}
    for alpha in ALPHAS:
        below, flagged = p <= alpha, p <= cutoff(alpha)
        by_class = {
            classes[k]: (float(flagged[test.labels == k].mean()), int((test.labels == k).sum()))
            for k in np.unique(test.labels)
        }
        large = {name: share for name, (share, n) in by_class.items() if n >= FEWEST_IMAGES}
        worst = max(large, key=large.__getitem__) if large else None
        found[f"{alpha:g}"] = {
            "p_at_most_alpha": [float(below.mean()), interval(below, test.groups)],
            "flagged": [float(flagged.mean()), interval(flagged, test.groups)],
            "worst_class": worst,
            "worst_share": None if worst is None else large[worst],
            "classes_above_4_alpha": sum(share > 4 * alpha for share in large.values()),
            "by_class": {name: share for name, (share, _) in by_class.items()},
        }
    return found


def recalibrated(bundle: Bundle, engine: Engine, data: Dataset, out: Path, *, version: str, seed: int) -> Calibration:
    """Write to `out` the bundle with a calibration that counts groups; what `data` has is what it counts."""
    like = bundle.calibration("cpu", "fp32")
    with draft_of(out) as draft:
        shutil.copytree(bundle.path, draft, dirs_exist_ok=True)
        made = calibrate(
            benign_scores(engine, bundle.manifest.input, data, lambda *_: None, seed=seed),
            names=bundle.manifest.scores,
            fused=like.fused,
            provider="cpu",
            graphs_sha256=like.graphs_sha256,
            out=draft,
            guard=like.guard,
            screened_by=like.cascade.scores if like.cascade else [],
            counted="groups",
            evaluated=False,
            seed=seed,
        )
        write_manifest(draft, bundle.manifest.model_copy(update={"version": version, "calibrations": [made]}))
    return load_bundle(out).calibration("cpu", "fp32")


def main(
    folder: Annotated[Path, typer.Argument(metavar="BUNDLE", help="Folder of a bundle whose data have tracks.")],
    *,
    frames: Annotated[str | None, typer.Option(help="Data with every frame of the tracks, as npz:NAME.")] = None,
    work: Annotated[Path | None, typer.Option(help="Folder for scores and attacked images, taken again.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for the bundle that counts groups, calibrated anew.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of draws.")] = 0,
    threads: Threads = None,
    json_path: JsonPath = None,
) -> None:
    """Measure what p-values mean, by rule."""
    use_threads(threads)
    bundle = load_bundle(folder)
    data, settings = made_with(bundle)
    engine = Engine.open(bundle, device="cpu", precision="fp32", threads=threads or 0)
    parts = {"select": data.select, "calibrate": data.calibrate}
    if frames is not None:
        parts = {name: all_frames(part, frames) for name, part in parts.items()}
    test = data.test
    if settings.track_frames is not None:
        test = Split(test.x, test.y, inferred_tracks(test.x, test.y, frames=settings.track_frames))
    with progress_bars() as bars:
        seen = {name: look(engine, bundle, part, name, work, bars.step) for name, part in parts.items()}
        on_test = look(engine, bundle, test, "test", work, bars.step)
        pool = data.test.take(np.random.default_rng([seed, 3]).permutation(len(data.test)))
        attacks = fooling(load_defence(bundle), pool, seed=seed, counts=COUNTS, work=work)
        attacked = {name: look(engine, bundle, _unlabelled(attacks[name]), name, None, bars.step) for name in COUNTS}
        if out is not None:
            more = Dataset(data.name, data.classes, data.train, parts["select"], parts["calibrate"], data.test)
            recalibrated(bundle, engine, more, out, version=f"{bundle.version}-groups", seed=seed)
    figures: dict[str, Any] = {
        "bundle": f"{bundle.name} {bundle.version}",
        "seed": seed,
        "n": {
            name: [len(each.labels), len(np.unique(each.groups))] for name, each in (seen | {"test": on_test}).items()
        },
        "attacked": {name: len(each.answers) for name, each in attacked.items()},
    }
    for name, (p_values, cutoff) in rules(bundle, seen["select"], seen["calibrate"]).items():
        figures[name] = measure(p_values(on_test), cutoff, on_test, data.classes)
        for alpha in ALPHAS:
            figures[name][f"{alpha:g}"]["detected"] = {
                attack: float((p_values(each) <= cutoff(alpha)).mean()) for attack, each in attacked.items()
            }
    _print(figures)
    if json_path is not None:
        record(json_path, "what p-values mean", figures)


def _unlabelled(images: np.ndarray) -> Split:
    return Split(images, np.full(len(images), -1, np.int64), np.arange(len(images)))


def _print(figures: dict[str, Any]) -> None:
    console = Console(width=160)
    console.print({key: figures[key] for key in ("bundle", "n", "attacked")})
    table = Table("rule", "alpha", "P(p <= alpha)", "flagged", "worst class", "classes > 4 alpha", *COUNTS)
    rows = {name: each for name, each in figures.items() if isinstance(each, dict) and "0.01" in each}
    for name, each in rows.items():
        for alpha in ALPHAS:
            row = each[f"{alpha:g}"]
            table.add_row(
                name,
                f"{alpha:g}",
                *(_ranged(row[key]) for key in ("p_at_most_alpha", "flagged")),
                "-" if row["worst_class"] is None else f"{row['worst_class']} {100 * row['worst_share']:.1f} %",
                str(row["classes_above_4_alpha"]),
                *(f"{100 * row['detected'][attack]:.1f} %" for attack in COUNTS),
            )
    console.print(table)
    classes = Table("class, flagged at alpha 5 %", *rows)
    for name in rows["as shipped"]["0.05"]["by_class"]:
        classes.add_row(name, *(f"{100 * each['0.05']['by_class'][name]:.1f} %" for each in rows.values()))
    console.print(classes)


def _ranged(share: list[Any]) -> str:
    low, high = share[1]
    return f"{100 * share[0]:.2f} % ({100 * low:.2f} to {100 * high:.2f})"


if __name__ == "__main__":
    typer.run(command(main))
