"""Level 4: attacks that aim at the harm that neutralisation may do."""

from __future__ import annotations

from functools import partial

import numpy as np
import torch

from training.attacks.joint import joint_attack
from training.attacks.neutralised import gated, harm
from training.evaluate.harness.bench import Bench
from training.evaluate.harness.found import Found
from training.evaluate.harness.section import Effort, Interval
from training.evaluate.harness.served_judge import judged_as_served
from training.evaluate.harness.shown import Body, ranged
from training.evaluate.harness.store import Arrays
from training.evaluate.harness.unit import Place, Unit
from training.served.answers import Served
from training.util.module_modes import frozen
from training.util.statistics import interval

CHUNK = 16
EPS = 8


class Harm(Effort):
    """Share of `n` images whose right answer is served wrong after neutralisation, under Linf `eps` / 255."""

    n: int
    eps: float
    harmed: float
    harmed_interval: Interval


def harmed(bench: Bench) -> Found:
    """How often an attacker who aims at it has neutralisation turn a right answer into a wrong one that is served."""
    settings, judge = bench.settings, bench.pipeline.judge
    clean = bench.test.take(bench.right_first(settings.harm))
    gate = judge.level(bench.bundle.manifest.policy.gate_alpha)

    def make(start: int, stop: int, generator: torch.Generator) -> Arrays:
        part = clean.take(np.arange(start, stop))
        with frozen(bench.defence):
            found = joint_attack(
                bench.defence,
                bench.pixels(part.x),
                bench.targets(part.y),
                eps=EPS / 255,
                steps=settings.adaptive_steps,
                targets=settings.adaptive_targets,
                generator=generator,
                conditions=gated(judge.fusion, gate),
                afterwards=harm(judge.calibration.recovery),
                beaten=judged_as_served(bench, _outcomes, "harmed"),
                progress=partial(bench.progress, f"attacks that aim at harm, images {start}-{stop}"),
            )
        return {"harmed": found[:, 0].cpu().numpy()}

    effort = {"steps": settings.adaptive_steps, "targets": settings.adaptive_targets}
    won = bench.rows("attacks that aim at harm", "harm", effort, len(clean), CHUNK, make, served=True)["harmed"]
    section = Harm(
        n=len(clean),
        eps=EPS,
        harmed=float(won.mean()),
        harmed_interval=interval(won, clean.group),
        steps=settings.adaptive_steps,
        targets=settings.adaptive_targets,
    )
    return Found(section, outcomes={"harmed_adaptive": won})


def _outcomes(_bench: Bench, answers: Served, label: np.ndarray) -> Arrays:
    return {"harmed": (answers.raw == label) & (answers.served != label)}


def _show(found: Harm) -> Body:
    return [
        (
            f"At {found.eps:g}/255, {found.targets} targets x {found.steps} steps, n = {found.n:,}: the raw answer is "
            f"right and the served one wrong on {ranged(found.harmed, found.harmed_interval)}."
        )
    ]


UNIT = Unit(
    "harm",
    "4",
    "attacks that aim at harm",
    harmed,
    Harm,
    ("harm",),
    (
        Place(
            "harm",
            "Harm by neutralisation",
            "Answers that are wrong because of neutralisation, under an attacker who aims at it. How often that "
            "happens to benign images stands under benign test images.",
            "knows",
            Harm,
            _show,
        ),
    ),
    count="harm",
    depends=("adaptive_steps", "adaptive_targets"),
    seconds=4,
)
