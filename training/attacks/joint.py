"""An attacker who knows everything: answering network, companion and detector at once, one target class at a time.

Momentum PGD on a sum of hinges, one for each condition that an unflagged wrong answer needs: the answering network says
the target, the guard does not object, the fused statistic stays below its limit. A condition that is met gives no
gradient, and each part's gradient is normalised before they are added, so that none drowns the others (after Tramer et
al. 2020, arXiv 2002.08347; Bryniarski et al. 2021, arXiv 2106.15023). Several targets are tried, best guesses of the
companion first. Which conditions there are is the caller's: all of them, the companion's alone, or those of a screen.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from gateway.verdict import Fusion
from training.attacks.margin import margin
from training.attacks.pgd import project
from training.defence.graph import DefenceGraph

# (logits, companion's logits, scores (N, S), target (N,)) -> hinges, (N,) each, zero where the condition is met.
Conditions = Callable[[Tensor, Tensor, Tensor, Tensor], list[Tensor]]
Beaten = Callable[[Tensor, Tensor], Tensor]
Progress = Callable[[int, int], None]

_ANSWER = 0.5  # margin at which an answer is taken for safe
_GUARD = 0.1  # and an objection for avoided, in logits
_FISHER = 1.0
_LEVELS = np.concatenate([np.linspace(0, 0.9, 10), [0.95, 0.98, 0.99, 0.995, 1.0]])


def unflagged(fusion: Fusion, level: float) -> Conditions:
    """The conditions of a wrong answer whose T (`gateway.verdict.Fusion`) stays above `level`."""
    limit, objection = fusion.limits(level)
    evidence = _evidence(fusion.components, fusion.columns)

    def conditions(logits: Tensor, companion: Tensor, scores: Tensor, target: Tensor) -> list[Tensor]:
        hinges = [_says(logits, target), (evidence(scores) - limit + _FISHER).relu()]
        if fusion.guard is None:
            return [*hinges, _says(companion, target)]
        # The guard is minus the companion's margin of what is answered; the target's, as that is to be answered.
        return [*hinges, (_GUARD - objection - margin(companion, target)).relu()]

    return conditions


def screened(fusion: Fusion, columns: Sequence[int], threshold: float) -> Conditions:
    """The conditions of a wrong answer that the cascade's screen lets off: Fisher's statistic below `threshold`."""
    evidence = _evidence(fusion.components, columns)

    def conditions(logits: Tensor, companion: Tensor, scores: Tensor, target: Tensor) -> list[Tensor]:
        return [
            _says(logits, target),
            (evidence(scores) - threshold + _FISHER).relu(),
            _says(companion, target),
        ]

    return conditions


def companion_says(_logits: Tensor, companion: Tensor, _scores: Tensor, target: Tensor) -> list[Tensor]:
    """The companion alone is attacked."""
    return [_says(companion, target)]


def joint_attack(
    defence: DefenceGraph,
    x: Tensor,
    y: Tensor,
    *,
    eps: float,
    steps: int,
    targets: int,
    conditions: Conditions,
    beaten: Beaten,
    progress: Progress = lambda _done, _total: None,
) -> Tensor:
    """Which images fall within `eps` (Linf, of 1), at each false-positive rate: (N, A) bool.

    `beaten(adversarial, y)` judges images as the system does: (N, A), True where the answer is wrong and not flagged at
    the a-th rate, rates ascending (fewer flags first). An image is attacked until it falls at the last one, or
    `targets` other classes (at most all of them) were tried.
    """
    with torch.no_grad():
        scored = defence.companion(x).scatter(1, y[:, None], -torch.inf)
        targets = min(targets, scored.shape[1] - 1)  # the label itself is no target
        order = scored.topk(targets, 1).indices
        won = beaten(x, y)
    for number in range(targets):
        left = torch.flatten(torch.nonzero(~won[:, -1]))
        if len(left) == 0:
            break
        won[left] |= _towards(
            defence, x[left], y[left], order[left, number], eps=eps, steps=steps, conditions=conditions, beaten=beaten,
            progress=_part(progress, number * steps, targets * steps),
        )  # fmt: skip
    progress(targets * steps, targets * steps)
    return won


def _part(progress: Progress, before: int, total: int) -> Progress:
    """`progress` of a part of `total` steps that begins after `before` of them."""
    return lambda done, _total: progress(before + done, total)


def _says(logits: Tensor, target: Tensor) -> Tensor:
    return (_ANSWER - margin(logits, target)).relu()


def _evidence(components: np.ndarray, columns: Sequence[int]) -> Callable[[Tensor], Tensor]:
    """Fisher's statistic (N,) of scores (N, S), differentiable: -2 log p linear between benign quantiles and beyond."""
    n = len(components)
    heights = torch.from_numpy(-2 * np.log(1 - _LEVELS * n / (n + 1))).float()
    knots = [torch.from_numpy(np.quantile(components[:, column], _LEVELS)).float() for column in columns]

    def statistic(scores: Tensor) -> Tensor:
        total = torch.zeros(len(scores))
        for column, at in zip(columns, knots, strict=True):
            score = scores[:, column].contiguous()
            right = torch.searchsorted(at, score.detach()).clamp(1, len(at) - 1)
            slope = (heights[right] - heights[right - 1]) / (at[right] - at[right - 1]).clamp_min(1e-6)
            total = total + (heights[right - 1] + slope * (score - at[right - 1])).relu()
        return total

    return statistic


def _towards(
    defence: DefenceGraph,
    x: Tensor,
    y: Tensor,
    target: Tensor,
    *,
    eps: float,
    steps: int,
    conditions: Conditions,
    beaten: Beaten,
    progress: Progress,
) -> Tensor:
    adv, momentum = x.clone(), torch.zeros_like(x)
    won = beaten(x, y)
    for step in range(steps):
        adv = adv.detach().requires_grad_(True)
        logits, taps = defence.network.taps(adv)
        companion = defence.companion(adv)
        scores, _ = defence.detector_scores(adv, logits, taps, companion)
        hinges = conditions(logits, companion, scores, target)
        total = torch.zeros_like(x)
        for i, hinge in enumerate(hinges):
            (gradient,) = torch.autograd.grad(hinge.sum(), adv, retain_graph=i < len(hinges) - 1)
            size = gradient.flatten(1).norm(dim=1)[:, None, None, None]
            total = total + torch.where(size > 0, gradient / size.clamp_min(1e-12), 0.0)
        momentum = 0.75 * momentum + total
        length = eps * 0.5 * (1 + torch.cos(torch.tensor(torch.pi * step / steps))) * 0.5
        adv = project(adv.detach() - length * momentum.sign(), x, eps, "linf")
        if step % 5 == 4 or step == steps - 1:
            won |= beaten(adv, y)
            progress(step + 1, steps)
            if won[:, -1].all():
                break
    return won
