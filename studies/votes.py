"""Does the vote of masks find obstacles that the region of attack misses, and is the answer under a mask right?

One round of masks hides places of an image and asks the answering network again. Where one of them turns a label into
another one, what it hid may have made the label. Scores of these votes are compared on the select split; the one that
flags most there is then read on the test split, beside the system's own p-value. Both become conformal on benign images
of the calibrate split; together they flag by the smaller p-value. False alarms are measured on benign images of the
split, as is what it costs to take the label under a mask for the answer.

`python -m studies.votes BUNDLE --n 100 --benign 400`
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.table import Table

from gateway.core.decision import Decision
from gateway.core.decode import to_pixels
from gateway.core.engine import Engine
from gateway.core.masks import MaskSet
from gateway.core.pipeline import Pipeline
from gateway.core.verdict import conformal_p, lead
from gateway.core.votes import objections
from studies.fooling import fooling
from studies.robust import share
from training.bundling.networks import load_defence
from training.commands.figures import today, with_data, write_json
from training.commands.terminal import BundlePath, JsonPath, command, console, progress_bars
from training.data.dataset import Split
from training.models.network import Network
from training.recipes.evaluation import Evaluation
from training.util.signatures import StepProgress, silent

RATES = (0.01, 0.05)
FAMILIES = ("patch", "patch_low", "bars", "dull_sticker", "strip", "strip_smooth", "pair", "half_shadow")
"""Attacks of the card (`training.attacks.listed`)."""


def mask_sets(size: int) -> dict[str, np.ndarray]:
    """Masks (M, H, W) to compare: small and large squares, bands across the image, and squares with bands."""
    small, large = (MaskSet(size, size, round(size * share), 4).singles() for share in (5 / 32, 8 / 32))
    thick, step = size // 4, size // 8
    starts = range(0, size - thick + 1, step)
    bands = np.zeros((2 * len(starts), size, size), np.float32)
    for i, start in enumerate(starts):
        bands[2 * i, start : start + thick] = 1.0
        bands[2 * i + 1, :, start : start + thick] = 1.0
    return {"small": small, "large": large, "bands": bands}


SETS = {"small": ["small"], "large": ["large"], "bands": ["bands"], "large + bands": ["large", "bands"]}


@dataclass(frozen=True)
class Voted:
    """N images: the system's p-values and labels (N,), logits (N, K), and logits under each mask of a set (N, M, K)."""

    p_value: np.ndarray
    served: np.ndarray
    logits: np.ndarray
    masked: dict[str, np.ndarray]

    def under(self, name: str) -> np.ndarray:
        """Logits (N, M, K) under the masks of a combination in `SETS`."""
        return np.concatenate([self.masked[each] for each in SETS[name]], axis=1)


def vote(pipeline: Pipeline, images: np.ndarray, progress: Callable[[int, int], None]) -> Voted:
    """The system's answers to images uint8 (N, H, W, C), and the answering network's under every mask."""
    masks = mask_sets(images.shape[1])
    decisions: list[Decision] = []
    under: dict[str, list[np.ndarray]] = {name: [] for name in masks}
    for i, image in enumerate(images):
        (decision,) = pipeline.decide_images([image], explain=False)
        decisions.append(decision)
        for name, some in masks.items():
            pixels = np.repeat(to_pixels(image), len(some), axis=0)
            under[name].append(pipeline.engine.answer(pixels, some))
        progress(i + 1, len(images))
    return Voted(
        np.array([decision.raw.verdict.p_value for decision in decisions]),
        np.array([decision.served.prediction.index for decision in decisions]),
        np.stack([decision.raw.outputs.logits for decision in decisions]),
        {name: np.stack(found) for name, found in under.items()},
    )


def flips(logits: np.ndarray, masked: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """By how much (N, M) the best other label leads the raw one under each mask, and which label that is."""
    raw = logits.argmax(1)
    own = np.take_along_axis(masked, raw[:, None, None], axis=2)[..., 0]
    others = masked.copy()
    np.put_along_axis(others, raw[:, None, None], -np.inf, axis=2)
    return others.max(2) - own, others.argmax(2)


def _lead(logits: np.ndarray, masked: np.ndarray) -> np.ndarray:
    """The largest lead of another label under a mask."""
    return flips(logits, masked)[0].max(1)


def _confident(logits: np.ndarray, masked: np.ndarray) -> np.ndarray:
    """A confident label that becomes another confident one: the smaller of the two leads."""
    return np.minimum(_lead(logits, masked), lead(logits))


def _one_spot(logits: np.ndarray, masked: np.ndarray) -> np.ndarray:
    """By how much that lead stands out from the median mask's."""
    margins = flips(logits, masked)[0]
    return margins.max(1) - np.median(margins, axis=1)


def _agreement(logits: np.ndarray, masked: np.ndarray) -> np.ndarray:
    """The lead of one other label, on average of the three masks that favour it most."""
    raw = logits.argmax(1)
    gains = masked - np.take_along_axis(masked, raw[:, None, None], axis=2)
    np.put_along_axis(gains, raw[:, None, None], -np.inf, axis=2)
    return np.sort(gains, axis=1)[:, -3:].mean(1).max(1)


def _objection(logits: np.ndarray, masked: np.ndarray) -> np.ndarray:
    """The largest lead in probability, as `PALISADE_VOTES` hears it."""
    return objections(logits.argmax(1), masked)[0].max(1)


SCORES = {
    "lead": _lead,
    "confident": _confident,
    "one spot": _one_spot,
    "agreement": _agreement,
    "objection": _objection,
}


def label_under(voted: Voted, masks: str) -> np.ndarray:
    """The label (N,) under the mask where another one leads most."""
    margins, labels = flips(voted.logits, voted.under(masks))
    return np.take_along_axis(labels, margins.argmax(1)[:, None], axis=1)[:, 0]


def judged(
    voted: Voted, truth: np.ndarray, benign: Voted, masks: str, score: str, group: np.ndarray
) -> dict[str, dict[str, Any]]:
    """Shares flagged and answered right, of the system, of the vote, and of both; cutoffs from `benign` images.

    The vote answers, in the system's place, where its p-value is at most one of `RATES`.
    """
    own, reference = (SCORES[score](each.logits, each.under(masks)) for each in (voted, benign))
    by_vote, vote_benign = conformal_p(np.sort(reference), own), conformal_p(np.sort(reference), reference)
    by_system, system_benign = (conformal_p(np.sort(-benign.p_value), -each.p_value) for each in (voted, benign))
    ways = {
        "system": (by_system, system_benign),
        "vote": (by_vote, vote_benign),
        "both": (np.minimum(by_system, by_vote), np.minimum(system_benign, vote_benign)),
    }
    found: dict[str, dict[str, Any]] = {}
    for way, (values, null) in ways.items():
        found[way] = {f"flagged_{rate:g}": share(values <= np.quantile(null, rate), group) for rate in RATES}
    found["system"]["right"] = share(voted.served == truth, group)
    for rate in RATES:
        answers = np.where(by_vote <= rate, label_under(voted, masks), voted.served)
        found["both"][f"right_{rate:g}"] = share(answers == truth, group)
    return found


def votes_report(
    pipeline: Pipeline,
    network: Network,
    data: Any,
    *,
    n: int,
    benign: int,
    test: bool = True,
    seed: int = 0,
    progress: StepProgress = silent,
) -> dict[str, Any]:
    """Families of obstacles on select, which chooses the score, and with `test` on the test split; JSON content."""

    def drawn(split: Split, count: int, stage: int) -> Split:
        return split.take(np.random.default_rng([seed, stage]).permutation(len(split))[:count])

    def asked(name: str, images: np.ndarray) -> Voted:
        return vote(pipeline, images, lambda done, total: progress(name, done, total))

    calm = asked("calibrate, benign", drawn(data.calibrate, benign, 0).x)
    report: dict[str, Any] = {}
    chosen: tuple[str, str] | None = None
    for stage, name in enumerate(("select", "test") if test else ("select",), 1):
        split = drawn(getattr(data, name), 20 * n, stage)
        clean = split.take(np.arange(min(benign, len(split))))
        sets = {"benign": (asked(f"{name}, benign", clean.x), clean)}
        for family in FAMILIES:
            fooled = fooling(network, split, family, n, Evaluation(), seed)
            sets[family] = (asked(f"{name}, {family}", fooled.x), fooled)

        def table(masks: str, score: str, sets: dict[str, tuple[Voted, Split]] = sets) -> dict[str, Any]:
            return {
                family: {"n": len(of), **judged(voted, of.y, calm, masks, score, of.group)}
                for family, (voted, of) in sets.items()
            }

        if chosen is None:
            everything = {(masks, score): table(masks, score) for masks in SETS for score in SCORES}
            gained = {
                pair: float(np.mean([found[family]["both"]["flagged_0.05"]["mean"] for family in FAMILIES]))
                for pair, found in everything.items()
            }
            chosen = max(gained, key=gained.__getitem__)
            report["compared"] = {f"{masks}: {score}": value for (masks, score), value in gained.items()}
        report[name] = table(*chosen)
        report["masks"], report["score"] = chosen
    return {"n": n, "benign": benign, "seed": seed, **report}


def votes_table(report: dict[str, Any], split: str) -> Table:
    """Flagged and answered right, before and with the vote."""
    table = Table("family", "n", *(f"{way} at {rate:.0%}" for rate in RATES for way in ("system", "vote", "both")))
    for column in ("right", *(f"right, votes at {rate:.0%}" for rate in RATES)):
        table.add_column(column)
    table.title = f"{split} split, {report['masks']} masks, score {report['score']}"
    for family, found in report[split].items():
        cells = [found[way][f"flagged_{rate:g}"]["mean"] for rate in RATES for way in ("system", "vote", "both")]
        cells += [found["system"]["right"]["mean"], *(found["both"][f"right_{rate:g}"]["mean"] for rate in RATES)]
        table.add_row(family, str(found["n"]), *(f"{100 * value:.1f}" for value in cells))
    return table


def main(
    bundle: BundlePath = Path("models/gtsrb"),
    json_path: JsonPath = None,
    n: Annotated[int, typer.Option("--n", min=2, help="Number of images of each family that fool the network.")] = 100,
    benign: Annotated[int, typer.Option(min=20, help="Number of benign images of each split.")] = 400,
    test: Annotated[  # noqa: FBT002
        bool, typer.Option(help="Whether to read the test split, too.")
    ] = True,
    seed: int = 0,
    threads: Annotated[int, typer.Option(min=1, help="Threads of ONNX Runtime.")] = 1,
) -> None:
    """Compare scores of the masks' votes on select, and read the chosen one on test."""
    loaded, data = with_data(bundle)
    pipeline = Pipeline.on(Engine.open(loaded, device="cpu", threads=threads), loaded, action="sanitize", pool=False)
    with progress_bars() as bars:
        report = votes_report(
            pipeline, load_defence(loaded).network, data, n=n, benign=benign, test=test, seed=seed, progress=bars.step
        )
    if json_path:
        write_json(json_path, {"subject": f"{loaded.name} {loaded.version}", "date": today(), **report})
    for pair, value in sorted(report["compared"].items(), key=lambda item: -item[1]):
        console.print(f"select, both at 5 %, mean of families: {100 * value:.1f} % with {pair}")
    for split in ("select", "test") if test else ("select",):
        console.print(votes_table(report, split))


if __name__ == "__main__":
    typer.run(command(main))
