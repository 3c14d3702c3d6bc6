"""Task losses of a stage: standard training, adversarial training and TRADES.

Adversarial training: Madry et al. 2018 (arXiv 1706.06083), cross-entropy on PGD images, optionally on clean ones too.
TRADES: Zhang et al. 2019 (arXiv 1901.08573), Algorithm 1 and equation 5:
    CE(f(x), y) + beta * mean KL(p(x) || p(x')),  x' = arg max in the ball of KL(p(x) || p(x')).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from gateway.core.masks import MaskSet, default_patch
from training.attacks.masks import with_worst_pairs
from training.attacks.pgd import noisy_fgsm, project, random_start, training_pgd
from training.loop.patches import with_worst_obstacles, with_worst_patches
from training.models.small_field import without_worst_windows
from training.recipes.training import Adversary, Stage, WorstWindows
from training.util.random_draws import uniform
from training.util.signatures import Predict


def attacked(stage: Stage, predict: Predict, x: Tensor, y: Tensor, generator: Generator) -> Tensor:
    """What the stage's adversary, or its worst masks and patches, make of `x` (N, C, H, W) in [0, 1]; else `x` itself.

    `predict` maps pixels to logits, with the network in evaluation mode.
    """
    if stage.adversary:
        x = _attacked(stage.adversary, predict, x, y, generator)
    elif stage.trades:
        x = kl_pgd(predict, x, eps=stage.trades.eps / 255, steps=stage.trades.steps, generator=generator)
    elif stage.searched:
        x = _searched(stage, predict, x, y, generator)
    return x


def _searched(stage: Stage, predict: Predict, x: Tensor, y: Tensor, generator: Generator) -> Tensor:
    """`x` with a random share behind its worst masks, one under patches and one under obstacles; none has two."""
    order = torch.randperm(len(x), generator=generator).to(x.device)
    if masks := stage.worst_masks:
        height, width = x.shape[2:]
        patch = default_patch(height, width, masks.patch_share)
        sets = MaskSet(height, width, patch, masks.masks_per_axis)
        count = max(1, round(masks.fraction * len(x)))
        x = with_worst_pairs(predict, x, y, sets, rows=order[:count], candidates=masks.candidates, generator=generator)
        order = order[count:]
    if patches := stage.worst_patches:
        count, others = (round(share * len(x)) for share in (patches.fraction, patches.obstacles))
        x = with_worst_patches(predict, x, y, patches, rows=order[:count], generator=generator)
        x = with_worst_obstacles(
            predict, x, y, tries=patches.places, rows=order[count : count + others], generator=generator
        )
    return x


def _attacked(adversary: Adversary, predict: Predict, x: Tensor, y: Tensor, generator: Generator) -> Tensor:
    eps: float | Tensor = adversary.eps / 255
    if adversary.spread:
        eps = eps * (1 - adversary.spread * uniform((len(x), 1, 1, 1), generator).to(x))
    if adversary.noise:
        return noisy_fgsm(predict, x, y, eps=eps, noise=adversary.noise, generator=generator)
    return training_pgd(predict, x, y, eps=eps, steps=adversary.steps, generator=generator)


def task_losses(
    stage: Stage, predict: Predict, x: Tensor, adversarial: Tensor, y: Tensor, *, smoothing: float = 0.0
) -> dict[str, Tensor]:
    """Weighted losses by name (scalars, means over the batch) of `predict`, the network in training mode.

    `adversarial` is what `attacked` made of `x`.

    Clean and adversarial images go through one forward pass, so that BatchNorm sees what it will serve.
    """
    n = len(x)
    if adversary := stage.adversary:
        part = max(1, round(adversary.clean_fraction * n)) if adversary.clean_weight else 0
        logits = predict(torch.cat([adversarial, x[:part]]) if part else adversarial)
        losses = {"ce_adv": F.cross_entropy(logits[:n], y, label_smoothing=smoothing)}
        if part:
            clean = F.cross_entropy(logits[n:], y[:part], label_smoothing=smoothing)
            losses["ce_clean"] = adversary.clean_weight * clean
        return losses
    if stage.trades:
        logits = predict(torch.cat([x, adversarial]))
        return {
            "ce_clean": F.cross_entropy(logits[:n], y, label_smoothing=smoothing),
            "kl": stage.trades.beta * kl(logits[:n], logits[n:]).mean(),
        }
    return {"ce": F.cross_entropy(predict(adversarial if stage.searched else x), y, label_smoothing=smoothing)}


def window_losses(
    settings: WorstWindows, cells: Tensor, windows: Tensor, y: Tensor, targets: Tensor, *, smoothing: float = 0.0
) -> dict[str, Tensor]:
    """Weighted losses of evidence `cells` (N, K, h, w): of all of it, and without the worst two of `windows`.

    `windows` (cells, Q) are those of `gateway.core.small_field`, `y` (N,) the labels, `targets` labels or soft ones.
    """
    whole = F.cross_entropy(cells.sum((2, 3)), targets, label_smoothing=smoothing)
    left = F.cross_entropy(without_worst_windows(cells, y, windows), targets, label_smoothing=smoothing)
    return {"ce": (1 - settings.share) * whole, "ce_windows": settings.share * left}


def adversarial_rows(stage: Stage, n: int) -> slice:
    """Where the adversarial images are in what `task_losses` passes to the network, of a batch of `n`."""
    return slice(n, None) if stage.trades else slice(n)


def kl(clean: Tensor, other: Tensor) -> Tensor:
    """KL(softmax(clean) || softmax(other)) of each row of logits (N, K), (N,)."""
    return F.kl_div(F.log_softmax(other, 1), F.log_softmax(clean, 1), reduction="none", log_target=True).sum(1)


def kl_pgd(predict: Predict, x: Tensor, *, eps: float, steps: int, generator: Generator) -> Tensor:
    """The inner maximisation of TRADES: Linf PGD on the KL term, the last iterate; start and step as `training_pgd`.

    The paper starts at x + 0.001 N(0, I), where the gradient is so small that rounding decides its signs.
    """
    with torch.no_grad():
        clean = predict(x).float()
    adv = project(x + random_start(x, eps, "linf", generator), x, eps, "linf")
    for _ in range(steps):
        adv.requires_grad_(True)
        (gradient,) = torch.autograd.grad(kl(clean, predict(adv).float()).sum(), adv)
        adv = project(adv.detach() + (1.5 * eps / max(steps, 2)) * gradient.sign(), x, eps, "linf")
    return adv
