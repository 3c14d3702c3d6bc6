"""An attacker who knows everything: answering network, companion and detector at once, one target class at a time.

Momentum PGD on a sum of hinges, one for each condition that an unflagged wrong answer needs: the answering network says
the target, the companion says it too, every detector score stays below a benign level. A condition that is met gives no
gradient, and each part's gradient is normalised before they are added, so that none drowns the others (after Tramer et
al. 2020, arXiv 2002.08347; Bryniarski et al. 2021, arXiv 2106.15023). Several targets are tried, best guesses of the
companion first.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from training.attacks.margin import margin
from training.attacks.pgd import project
from training.defence.graph import DefenceGraph

Beaten = Callable[[Tensor, Tensor], Tensor]
Progress = Callable[[int, int], None]


def joint_attack(
    defence: DefenceGraph,
    x: Tensor,
    y: Tensor,
    *,
    eps: float,
    steps: int,
    targets: int,
    level: Tensor,
    scale: Tensor,
    beaten: Beaten,
    progress: Progress = lambda _done, _total: None,
) -> Tensor:
    """Which images fall within `eps` (Linf, of 1), at each false-positive rate: (N, A) bool.

    `level` and `scale` (S,) are benign medians and spreads of the scores: a hinge is active while a score is above its
    level. `beaten(adversarial, y)` judges images as the system does: (N, A), True where the answer is wrong and not
    flagged at the a-th rate, rates ascending (fewer flags first). An image is attacked until it falls at the last one,
    or `targets` other classes (at most all of them) were tried.
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
            defence, x[left], y[left], order[left, number], eps=eps, steps=steps, level=level, scale=scale,
            beaten=beaten, progress=_part(progress, number * steps, targets * steps),
        )  # fmt: skip
    progress(targets * steps, targets * steps)
    return won


def _part(progress: Progress, before: int, total: int) -> Progress:
    """`progress` of a part of `total` steps that begins after `before` of them."""
    return lambda done, _total: progress(before + done, total)


def _towards(
    defence: DefenceGraph,
    x: Tensor,
    y: Tensor,
    target: Tensor,
    *,
    eps: float,
    steps: int,
    level: Tensor,
    scale: Tensor,
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
        hinges = [
            (0.5 - margin(logits, target)).relu(),
            (0.5 - margin(companion, target)).relu(),
            ((scores - level) / scale).relu().sum(1),
        ]
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
