"""An attacker who knows everything: answering network, companion and detector at once.

Momentum descent (`training.attacks.search`) on a sum of hinges, one for each condition that an unflagged wrong answer
needs: the answering network answers the target, the guard does not object, the fused statistic stays below its limit. A
condition that is met gives no gradient, and each part's gradient is normalised before they are added, so that none
drowns the others (after Tramer et al. 2020, arXiv 2002.08347; Bryniarski et al. 2021, arXiv 2106.15023). Several target
classes are tried, best guesses of the companion first, and several starting points. Which conditions there are is the
caller's: all of them, the companion's alone, those of a screen, or large margins without a thought of the detector.
"""

from __future__ import annotations

import torch
from torch import Tensor

from training.attacks.conditions import Conditions
from training.attacks.joint_run import Afterwards, Beaten, Looks, Run, part_of
from training.attacks.pgd import random_start
from training.attacks.search import Ball, Combine
from training.defence.graph import DefenceGraph
from training.util.signatures import Progress, silent


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
    looks: Looks = "all",
    restarts: int = 1,
    untargeted: bool = False,
    combine: Combine = "normalised",
    samples: int = 1,
    jitter: float = 0.0,
    afterwards: Afterwards | None = None,
    order: Tensor | None = None,
    full_precision: bool = False,
    generator: torch.Generator | None = None,
    progress: Progress = silent,
) -> Tensor:
    """Which images fall within `eps` (Linf, of 1), at each false-positive rate: (N, A) bool.

    `beaten(adversarial, y)` judges images as the system does: (N, A), True where the answer is wrong and not flagged at
    the a-th rate, rates ascending (fewer flags first). An image is attacked until it falls at the last one, or
    `targets` other classes (at most all of them) were tried from each of `restarts` starting points: the image itself,
    then random points of the ball. With `untargeted`, each round begins with whatever other class is nearest.

    `looks` is what `conditions` read, so that nothing else is computed: everything; the answering network and its own
    scores; both networks' logits, with one score alone (`Only`) or with no scores; or the companion's alone, given as
    both logits. `afterwards` adds hinges of its own (`training.attacks.neutralised`). With `samples` each step follows
    the mean over that many evaluations, at images moved by uniform noise of up to `jitter`: it smooths what is rough,
    such as a score's own attack. `order` (N, T) gives the targets (`rank_targets` otherwise). The search is in bfloat16
    where the machine has it, unless `full_precision`; successes are what `beaten` returns.
    """
    noise = None if jitter == 0 else (jitter, generator)
    run = Run(defence, x, y, conditions, beaten, looks, afterwards, full_precision=full_precision, noise=noise)
    if run.won[:, -1].all():
        progress(1, 1)
        return run.won
    if order is None:
        order, nearest = run.ranking(eps, targets, generator)
        run.judge(nearest, torch.arange(len(x), device=x.device))
    aims: list[int | None] = [*([None] if untargeted else []), *range(min(targets, order.shape[1]))]
    passes = [(restart, aim) for restart in range(restarts) for aim in aims]
    for number, (restart, aim) in enumerate(passes):
        start = x if restart == 0 else (x + random_start(x, eps, "linf", generator)).clamp(0, 1)
        run.descend(
            Ball(x, eps),
            start,
            None if aim is None else order[:, aim],
            steps=steps,
            combine=combine,
            samples=samples,
            progress=part_of(progress, number * steps, len(passes) * steps),
        )
    progress(len(passes) * steps, len(passes) * steps)
    return run.won
