"""What a finished bundle flags: attacks on its own samples, and what its p-values are worth.

It is a smoke test of a few images and weak attacks, not a card: it shows whether anything can be flagged at all.
"""

from __future__ import annotations

import math

import numpy as np
from pydantic import BaseModel, ConfigDict

from gateway.core.manifest import Calibration, Policy
from gateway.core.pipeline import Pipeline
from training.bundling.samples import TITLES, Attacked
from training.data.dataset import Split
from training.errors import TrainingError
from training.served.scoring import run_batches
from training.util.signatures import StepProgress

HELD_OUT = 400
"""Clean test images that are judged, at most."""


class Flags(BaseModel):
    """Of `n` images that were answered rightly, `fooled` are answered wrongly; of those, flagged by alpha."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    title: str
    n: int
    fooled: int
    flagged: dict[str, int]


class Trial(BaseModel):
    """The attacks' outcomes, and how many of `clean` held-out images as they are were flagged, by alpha."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    attacks: list[Flags]
    clean: int
    clean_flagged: dict[str, int]


def attack_samples(pipeline: Pipeline, test: Split, made: dict[str, Attacked], progress: StepProgress) -> Trial:
    """Judge the attacked images, and the first `HELD_OUT` of `test` as they are, with the bundle's calibration."""
    judge = pipeline.judge
    cutoffs = {f"{cutoff.alpha:g}": cutoff.p_cutoff for cutoff in judge.calibration.cutoffs}

    def flagged(images: np.ndarray, name: str) -> dict[str, int]:
        spec, batch = pipeline.bundle.manifest.input, pipeline.engine.buckets[-1]
        runs = run_batches(
            pipeline.engine, images, spec, batch=batch, progress=lambda done, total: progress(name, done, total)
        )
        p = np.concatenate([np.empty(0), *(judge.p_values(run.scores.astype(np.float64)) for run in runs)])
        return {alpha: int((p <= cutoff).sum()) for alpha, cutoff in cutoffs.items()}

    rows = [
        Flags(
            title=TITLES[kind],
            n=int(attacked.right.sum()),
            fooled=int(attacked.fooled.sum()),
            flagged=flagged(attacked.images[attacked.fooled], f"judging samples: {TITLES[kind]}"),
        )
        for kind, attacked in made.items()
    ]
    clean = test.x[:HELD_OUT]
    return Trial(attacks=rows, clean=len(clean), clean_flagged=flagged(clean, "judging samples: clean"))


def table(trial: Trial) -> list[str]:
    """The trial as lines of text."""
    alphas = list(trial.clean_flagged)
    head = f"{'':32}{'fooled':>10}" + "".join(f"{f'alpha {alpha}':>12}" for alpha in alphas)
    lines = ["of the images that fool the network, and of clean held-out ones, are flagged:", head]
    for row in trial.attacks:
        cells = "".join(f"{f'{row.flagged[alpha]}/{row.fooled}':>12}" for alpha in alphas)
        lines.append(f"{row.title:32}{f'{row.fooled}/{row.n}':>10}{cells}")
    cells = "".join(f"{f'{trial.clean_flagged[alpha]}/{trial.clean}':>12}" for alpha in alphas)
    return [*lines, f"{'clean':32}{'':>10}{cells}"]


def check_reach(calibration: Calibration, policy: Policy) -> list[str]:
    """What the p-values of `calibration` are worth, one sentence each; `TrainingError` if nothing could be flagged.

    That is so where the smallest p-value that any input can have is above the cutoff of the policy's alpha.
    """
    smallest, notes = calibration.smallest_p, []
    assert smallest is not None
    unreached = [cutoff for cutoff in calibration.cutoffs if smallest > cutoff.p_cutoff * (1 + 1e-9)]
    for cutoff in unreached:
        said = f"the smallest p-value that any input can have is {smallest:.4f}, above the cutoff {cutoff.p_cutoff:.4f}"
        if cutoff.alpha == policy.alpha:
            raise TrainingError(
                f"nothing can be flagged at alpha {cutoff.alpha:g}: {said}; benign images tie in their scores: add "
                "images that differ, or choose a larger alpha"
            )
        notes.append(f"nothing can be flagged at alpha {cutoff.alpha:g}: {said}")
    independent = calibration.n / calibration.design_effect
    for cutoff in calibration.cutoffs:
        if cutoff.confidence is None:  # p-values of groups keep alpha whatever their number is
            continue
        needed = images_needed(cutoff.alpha, cutoff.confidence)
        if independent < needed:
            kept = 1 - (1 - cutoff.confidence) ** (1 / independent)
            notes.append(
                f"alpha {cutoff.alpha:g} is not kept: {calibration.n} calibrate images are worth {independent:.0f} "
                f"independent ones, and {needed} are needed; what is beyond all of them (p = {smallest:.4f}) is "
                f"flagged, which up to {100 * kept:.1f} % of benign images may be"
            )
    return notes


def images_needed(alpha: float, confidence: float) -> int:
    """Independent benign images after which flagging what is beyond them all keeps `alpha` with that confidence.

    None of n images is beyond the (1 - alpha) quantile with probability (1 - alpha)^n: 230 for 1 % at 90 %.
    """
    return math.ceil(math.log(1 - confidence) / math.log(1 - alpha))
