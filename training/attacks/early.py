"""Attacking a large set: images already fooled are not attacked again."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from training.attacks.margin import margin
from training.attacks.pgd import Predict, pgd


def pgd_until_fooled(
    predict: Predict,
    x: Tensor,
    y: Tensor,
    *,
    eps: float,
    steps: int,
    restarts: int = 1,
    batch: int = 256,
    check_every: int = 10,
    generator: torch.Generator | None = None,
    progress: Callable[[int, int], None] = lambda _done, _total: None,
) -> tuple[Tensor, Tensor]:
    """PGD Linf (margin loss) that leaves an image alone once it is fooled: adversarial images and fooled (N,) bool.

    The first run of `check_every` steps fools most of a weak network, so only survivors pay for all `steps`. Each
    restart begins afresh on the survivors with all `steps` (step size 2.5 eps / steps).
    """
    adversarial, fooled = x.clone(), torch.zeros(len(x), dtype=torch.bool)
    schedule = [min(check_every, steps)] + [steps] * restarts if steps > check_every else [steps] * restarts
    for start in range(0, len(x), batch):
        part = slice(start, start + batch)
        for length in schedule:
            left = torch.flatten(torch.nonzero(~fooled[part])) + start
            if len(left) == 0:
                break
            adv = pgd(predict, x[left], y[left], eps=eps, steps=length, generator=generator)
            with torch.no_grad():
                now = margin(predict(adv), y[left]) < 0
            adversarial[left], fooled[left] = adv, now
        progress(min(start + batch, len(x)), len(x))
    return adversarial, fooled
