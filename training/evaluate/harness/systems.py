"""Systems that an adaptive attacker meets, and how each of them judges an image."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from gateway.core.verdict import Fusion, component_p, fisher
from training.attacks.joint_run import look
from training.attacks.margin import margin
from training.defence.scores import SCORES, score_named
from training.evaluate.harness.bench import Bench
from training.recipes.evaluation import ALPHAS, RATES
from training.util.statistics import threshold_at

ALONE, DOUBTS = "companion_alone", "companion_doubts"
DOUBT = 1.0  # margin of the right label, in logits, below which the companion is near to erring
# Scores (N, S) and the answer's softmax (N,) to what is flagged where it is large, (N,).
Reading = Callable[[np.ndarray, np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Systems:
    """The systems of one bundle. A *column* is a system at a rate: whether a wrong answer goes unflagged there.

    `answering` has no defence; `max_softmax` rejects unsure answers (a detector that a harness has to break);
    `detector` is Fisher's combination of all fused scores but the companion's; `companion` and `strict` are that
    network's scores alone; `all` is what is served. Each is cut where it flags 1, 5 and 10 % of the benign test images.
    `served` and `cascade` are cut where the gateway cuts. `guard` is what the guard alone would let pass within `all`
    and `served`: no attack that it objects to wins there. `companion_alone` asks only whether the companion errs,
    `companion_doubts` whether it is near to erring.
    """

    bench: Bench

    @cached_property
    def readings(self) -> dict[str, Reading]:
        """By system that can be cut at any rate."""
        judge, names = self.bench.pipeline.judge, self.bench.bundle.manifest.scores
        found: dict[str, Reading] = {"max_softmax": lambda _scores, confidence: -confidence}
        if calm := self.calm:
            found["detector"] = lambda scores, _confidence: _fisher(judge.fusion, calm, scores)
        for score in SCORES.values():
            if score.system is not None and score.name in names:
                found[score.system] = _column(names.index(score.name))
        found["all"] = lambda scores, _confidence: judge.fusion.statistic(scores)
        return found

    @property
    def calm(self) -> list[int]:
        """Columns of the fused scores that do not ask the companion."""
        names = self.bench.bundle.manifest.scores
        columns = self.bench.pipeline.judge.fusion.columns
        return [column for column in columns if "companion" not in score_named(names[column]).needs]

    @cached_property
    def thresholds(self) -> dict[tuple[str, float], float]:
        """By system and measured benign flag rate: what is above it is flagged."""
        clean = self.bench.clean
        seen = {
            system: read(clean.scores.astype(np.float64), clean.confidence) for system, read in self.readings.items()
        }
        return {(system, rate): threshold_at(values, rate) for system, values in seen.items() for rate in RATES}

    @cached_property
    def guards(self) -> dict[str, float]:
        """By rate, and as `served` at the larger level: the guard's score above which an image is flagged for sure."""
        judge = self.bench.pipeline.judge
        if judge.fusion.guard is None:
            return {}
        levels = {f"{rate:g}": -self.thresholds["all", rate] for rate in RATES}
        levels["served"] = judge.level(max(ALPHAS))
        return {name: judge.fusion.limits(level)[1] for name, level in levels.items()}

    @cached_property
    def columns(self) -> list[str]:
        """Names of the columns of `judged`, in order."""
        cut = [f"{system}@{rate:g}" for system in self.readings for rate in RATES]
        served = [f"served@{alpha:g}" for alpha in ALPHAS]
        cascade = [f"cascade@{alpha:g}" for alpha in ALPHAS] if self.bench.pipeline.can_screen else []
        second = [] if self.bench.defence.companion is None else [ALONE, DOUBTS]
        guards = [f"guard@{name}" for name in self.guards]
        return ["answering", *cut, *served, *cascade, *guards, *second]

    def judged(self, adversarial: Tensor, label: Tensor) -> np.ndarray:
        """Which images (N,) beat each column, (N, R): answered wrong and not flagged, once rounded to 8 bits."""
        manifest, judge = self.bench.bundle.manifest, self.bench.pipeline.judge
        with torch.no_grad():
            seen = look(self.bench.defence, (adversarial * 255).round() / 255)
            confidence = seen.logits.softmax(1).amax(1).cpu().numpy()
            second = margin(seen.companion, label).cpu().numpy()
        scores = seen.scores.cpu().numpy().astype(np.float64)
        passes = [np.ones(len(scores), bool)]
        for system, read in self.readings.items():
            values = read(scores, confidence)
            passes += [values <= self.thresholds[system, rate] for rate in RATES]
        # p-values come in steps and cutoffs are some of them: in float32 one at its cutoff would go unflagged.
        passes += [judge.p_values(scores) > judge.cutoff(alpha) for alpha in ALPHAS]
        if self.bench.pipeline.can_screen:
            on = judge.screen(scores[:, [manifest.scores.index(name) for name in manifest.screen_scores]])
            p = judge.p_values(scores, cascade=True)
            passes += [~on | (p > judge.cutoff(alpha, cascade=True)) for alpha in ALPHAS]
        passes += [scores[:, judge.fusion.objecting] <= limit for limit in self.guards.values()]
        wrong = (seen.logits.argmax(1) != label).cpu().numpy()
        alone = [] if self.bench.defence.companion is None else [second < 0, second < DOUBT]
        return np.stack([*(wrong & each for each in passes), *alone], axis=1)


def _column(index: int) -> Reading:
    return lambda scores, _confidence: scores[:, index]


def _fisher(fusion: Fusion, columns: list[int], scores: np.ndarray) -> np.ndarray:
    """Fisher's statistic (N,) of some of the scores alone."""
    return fisher(component_p(fusion.components[:, columns], scores[:, columns]))
