"""PGD for measuring robust accuracy: an image is left alone as soon as it is fooled."""

from __future__ import annotations

import torch
from torch import Tensor

from training.attacks.margin import margin
from training.attacks.pgd import direction, project, random_start
from training.util.signatures import Predict, Progress, silent


def pgd_until_fooled(
    predict: Predict,
    x: Tensor,
    y: Tensor,
    *,
    eps: float,
    steps: int,
    restarts: int = 1,
    batch: int = 256,
    generator: torch.Generator | None = None,
    progress: Progress = silent,
) -> tuple[Tensor, Tensor]:
    """PGD Linf (margin loss, step size 2.5 eps / steps): adversarial images (N, C, H, W) and fooled (N,) bool.

    The same verdict as running every image to the end and asking whether any iterate fooled it, at a fraction of the
    cost.
    A success found while searching is judged again without gradients, so `predict` may search in lower precision
    than it judges. Each restart begins afresh on the images that still stand.
    """
    if eps < 0 or steps < 1 or restarts < 1:
        raise ValueError(
            f"eps {eps}, steps {steps}, restarts {restarts}: eps >= 0, steps >= 1, restarts >= 1 are needed"
        )
    adversarial, fooled = x.clone(), torch.zeros(len(x), dtype=torch.bool, device=x.device)
    for start in range(0, len(x), batch):
        part = torch.arange(start, min(start + batch, len(x)), device=x.device)
        for _ in range(restarts):
            part = part[~fooled[part]]
            if len(part) == 0:
                break
            _run(predict, x, y, part, adversarial, fooled, eps=eps, steps=steps, generator=generator)
        progress(min(start + batch, len(x)), len(x))
    return adversarial, fooled


def _run(
    predict: Predict,
    x: Tensor,
    y: Tensor,
    alive: Tensor,
    adversarial: Tensor,
    fooled: Tensor,
    *,
    eps: float,
    steps: int,
    generator: torch.Generator | None,
) -> None:
    """One restart on the images `alive`; writes successes (and last iterates of the others) in place."""
    adv = project(x[alive] + random_start(x[alive], eps, "linf", generator), x[alive], eps, "linf")
    for _ in range(steps):
        adv = adv.detach().requires_grad_(True)
        now = margin(predict(adv).float(), y[alive])
        (gradient,) = torch.autograd.grad(-now.sum(), adv)
        adv = adv.detach()
        stay = ~_judge(predict, adv, y, alive, now.detach() < 0, adversarial, fooled)
        adv, alive, gradient = adv[stay], alive[stay], gradient[stay]
        if len(alive) == 0:
            return
        adv = project(adv + 2.5 * eps / steps * direction(gradient, "linf"), x[alive], eps, "linf")
    stay = ~_judge(predict, adv, y, alive, torch.ones_like(alive, dtype=torch.bool), adversarial, fooled)
    adversarial[alive[stay]] = adv[stay]


def _judge(
    predict: Predict, adv: Tensor, y: Tensor, alive: Tensor, suspects: Tensor, adversarial: Tensor, fooled: Tensor
) -> Tensor:
    """Which of `adv` certainly fool the network; they are recorded."""
    hit = torch.zeros_like(suspects)
    if suspects.any():
        with torch.no_grad():
            hit[suspects] = margin(predict(adv[suspects]).float(), y[alive[suspects]]) < 0
        adversarial[alive[hit]], fooled[alive[hit]] = adv[hit], True
    return hit
