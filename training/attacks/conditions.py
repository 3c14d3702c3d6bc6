"""What an attacker who knows the defence wants of it, as hinges: zero where a condition is met.

A condition that is met gives no gradient (`training.attacks.search`). Which conditions there are is the attack's
choice: those of an unflagged wrong answer, the companion's alone, those of a screen, or large margins.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from gateway.core.verdict import Fusion
from training.attacks.margin import margin
from training.defence.scores import score_named

# (logits, companion's logits, scores (N, S), target (N,)) -> hinges, (N,) each, zero where the condition is met.
Conditions = Callable[[Tensor, Tensor, Tensor, Tensor], list[Tensor]]

_ANSWER = 0.5  # margin at which an answer is taken for safe
_GUARD = 0.1  # and an objection for avoided, in logits
_FISHER = 1.0
_SURE = 5.0  # margin of a confident answer
_LEVELS = np.concatenate([np.linspace(0, 0.9, 10), [0.95, 0.98, 0.99, 0.995, 1.0]])


def unflagged(fusion: Fusion, level: float, *, capped: bool = False) -> Conditions:
    """The conditions of a wrong answer with T (`gateway.core.verdict.Fusion`) above `level`; `capped`: `evidence`."""
    limit, objection = fusion.limits(level)
    statistic = evidence(fusion.components, fusion.columns, capped=capped)

    def conditions(logits: Tensor, companion: Tensor, scores: Tensor, target: Tensor) -> list[Tensor]:
        hinges = [says(logits, target), (statistic(scores) - limit + _FISHER).relu()]
        if fusion.guard is None:
            return [*hinges, says(companion, target)]
        values = scores[:, fusion.objecting]
        return [*hinges, unobjected(fusion.guard.score, objection, logits, companion, values, target)]

    return conditions


def unobjected(score: str, limit: float, logits: Tensor, companion: Tensor, values: Tensor, target: Tensor) -> Tensor:
    """Hinge (N,): zero once the `score` that objects to `target`, larger where it objects more, is below `limit`.

    The companion's plain margin (`Score.of_any_label`) is asked of the target from the start. Any other score, with
    `values` (N,), is of the answered label: until that is the target the plain margin replaces a score of the
    companion's.
    """
    asked = score_named(score)
    plain = (_GUARD - limit - margin(companion, target)).relu()
    if asked.of_any_label:
        return plain
    answered, own = logits.argmax(1) == target, (values - limit + _GUARD).relu()
    return torch.where(answered, own, plain) if "companion" in asked.needs and not answered.all() else own


def screened(fusion: Fusion, columns: Sequence[int], threshold: float) -> Conditions:
    """The conditions of a wrong answer that passes the cascade's screen: Fisher's statistic below `threshold`."""
    statistic = evidence(fusion.components, columns)

    def conditions(logits: Tensor, companion: Tensor, scores: Tensor, target: Tensor) -> list[Tensor]:
        return [
            says(logits, target),
            (statistic(scores) - threshold + _FISHER).relu(),
            says(companion, target),
        ]

    return conditions


def companion_says(_logits: Tensor, companion: Tensor, _scores: Tensor, target: Tensor) -> list[Tensor]:
    """The companion alone is attacked."""
    return [says(companion, target)]


def confident(logits: Tensor, companion: Tensor, _scores: Tensor, target: Tensor) -> list[Tensor]:
    """Both networks answer the target by a large margin, whatever the detector reports."""
    return [says(logits, target, _SURE), says(companion, target, _SURE)]


def says(logits: Tensor, target: Tensor, by: float = _ANSWER) -> Tensor:
    """Hinge (N,): zero once `target` (N,) wins by `by` logits."""
    return (by - margin(logits, target)).relu()


def evidence(components: np.ndarray, columns: Sequence[int], *, capped: bool = False) -> Callable[[Tensor], Tensor]:
    """Fisher's statistic (N,) of scores (N, S), differentiable: -2 log p linear between benign quantiles and beyond.

    `capped`: a score beyond all benign ones counts as the largest of them, as it does in the gateway, and is left to
    grow. Where the limit lets one score be off the scale that wins more; elsewhere the slope that it takes away does.
    """
    n = len(components)
    heights = torch.from_numpy(-2 * np.log(1 - _LEVELS * n / (n + 1))).float()
    knots = [torch.from_numpy(np.quantile(components[:, column], _LEVELS)).float() for column in columns]

    def statistic(scores: Tensor) -> Tensor:
        total, high = torch.zeros(len(scores), device=scores.device), heights.to(scores.device)
        for column, knot in zip(columns, knots, strict=True):
            score, at = scores[:, column].contiguous(), knot.to(scores.device)
            right = torch.searchsorted(at, score.detach()).clamp(1, len(at) - 1)
            slope = (high[right] - high[right - 1]) / (at[right] - at[right - 1]).clamp_min(1e-6)
            doubt = (high[right - 1] + slope * (score - at[right - 1])).relu()
            total = total + (doubt.clamp(max=float(high[-1])) if capped else doubt)
        return total

    return statistic
