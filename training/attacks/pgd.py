"""Projected gradient descent (Madry et al. 2018, arXiv 1706.06083) in Linf and L2, with restarts.

Budgets are in pixels of [0, 1] (8/255, not 8). Success is checked on the clean label at every step, so that an image
stays at the first perturbation that fooled the network with the largest loss seen.
"""

from __future__ import annotations

from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from training.attacks.margin import margin
from training.attacks.unaware import Attack, Made, Scene
from training.util.random_draws import normal, uniform
from training.util.signatures import Predict

Norm = Literal["linf", "l2"]
Loss = Literal["ce", "margin"]


def pgd(
    predict: Predict,
    x: Tensor,
    y: Tensor,
    *,
    eps: float,
    steps: int,
    norm: Norm = "linf",
    step_size: float | None = None,
    restarts: int = 1,
    loss: Loss = "margin",
    generator: torch.Generator | None = None,
) -> Tensor:
    """Adversarial images (N, C, H, W) in the `eps` ball of `x`, in [0, 1].

    `predict` maps pixels to logits (N, K) and is differentiable; `y` (N,) are the labels to leave. Every restart begins
    at a random point; the worst iterate (smallest margin) over steps and restarts is returned. Step size defaults to
    2.5 eps / steps.
    """
    if eps < 0 or steps < 1 or restarts < 1:
        raise ValueError(
            f"eps {eps}, steps {steps}, restarts {restarts}: eps >= 0, steps >= 1, restarts >= 1 are needed"
        )
    alpha = 2.5 * eps / steps if step_size is None else step_size
    best = x.clone()
    with torch.no_grad():
        best_margin = margin(predict(x), y)
    for _ in range(restarts):
        adv = project(x + random_start(x, eps, norm, generator), x, eps, norm)
        for _ in range(steps):
            gradient, now = loss_gradient(predict, adv, y, loss)
            best, best_margin = _keep(best, best_margin, adv, now)
            adv = project(adv + alpha * direction(gradient, norm), x, eps, norm)
        with torch.no_grad():
            best, best_margin = _keep(best, best_margin, adv, margin(predict(adv), y))
    return best


def loss_gradient(predict: Predict, x: Tensor, y: Tensor, loss: Loss) -> tuple[Tensor, Tensor]:
    """Gradient (N, C, H, W) of the loss to raise, cross-entropy or minus the margin of `y`, and the margin (N,)."""
    x = x.detach().requires_grad_(True)
    logits = predict(x).float()
    now = margin(logits, y)
    objective = -now if loss == "margin" else F.cross_entropy(logits, y, reduction="none")
    (gradient,) = torch.autograd.grad(objective.sum(), x)
    return gradient, now.detach()


def training_pgd(
    predict: Predict, x: Tensor, y: Tensor, *, eps: float | Tensor, steps: int, generator: torch.Generator | None = None
) -> Tensor:
    """The inner maximisation of adversarial training: Linf, cross-entropy, random start, last iterate.

    `eps` may be one radius for each image (N, 1, 1, 1).
    """
    adv = project(x + random_start(x, eps, "linf", generator), x, eps, "linf")
    for _ in range(steps):
        adv.requires_grad_(True)
        (gradient,) = torch.autograd.grad(F.cross_entropy(predict(adv).float(), y, reduction="sum"), adv)
        adv = project(adv.detach() + (1.5 * eps / max(steps, 2)) * gradient.sign(), x, eps, "linf")
    return adv


def noisy_fgsm(
    predict: Predict,
    x: Tensor,
    y: Tensor,
    *,
    eps: float | Tensor,
    noise: float,
    generator: torch.Generator | None = None,
) -> Tensor:
    """One signed step of `eps` from uniform noise of `noise` times `eps`, in [0, 1] but not projected on the ball.

    N-FGSM (de Jorge et al. 2022, arXiv 2202.01181): at `noise` 2 about as strong a teacher as two or three steps of
    PGD, without the collapse of projected single steps. Images lie up to (1 + `noise`) `eps` from `x`.
    """
    start = (x + noise * random_start(x, eps, "linf", generator)).clamp(0, 1).requires_grad_(True)
    (gradient,) = torch.autograd.grad(F.cross_entropy(predict(start).float(), y, reduction="sum"), start)
    return (start.detach() + eps * gradient.sign()).clamp(0, 1)


def direction(gradient: Tensor, norm: Norm) -> Tensor:
    """Steepest ascent direction of unit norm: sign for Linf, normalised gradient for L2."""
    if norm == "linf":
        return gradient.sign()
    return gradient / gradient.flatten(1).norm(dim=1).clamp_min(1e-12)[:, None, None, None]


def project(adv: Tensor, x: Tensor, eps: float | Tensor, norm: Norm) -> Tensor:
    """The point of the `eps` ball around `x`, and of [0, 1], that belongs to `adv`."""
    delta = adv - x
    if norm == "linf":
        delta = delta.clamp(-eps, eps) if not isinstance(eps, Tensor) else delta.minimum(eps).maximum(-eps)
    else:
        size = delta.flatten(1).norm(dim=1).clamp_min(1e-12)
        delta = delta * (eps / size).clamp(max=1)[:, None, None, None]
    return (x + delta).clamp(0, 1)


def random_start(x: Tensor, eps: float | Tensor, norm: Norm, generator: torch.Generator | None) -> Tensor:
    """A random point of the `eps` ball (Linf: uniform in it; L2: on its sphere), as a perturbation like `x`."""
    if norm == "linf":
        return (uniform(x.shape, generator, dtype=x.dtype).to(x.device) * 2 - 1) * eps
    noise = normal(x.shape, generator, dtype=x.dtype).to(x.device)
    return noise / noise.flatten(1).norm(dim=1).clamp_min(1e-12)[:, None, None, None] * eps


def _keep(best: Tensor, best_margin: Tensor, adv: Tensor, now: Tensor) -> tuple[Tensor, Tensor]:
    better = now < best_margin
    return torch.where(better[:, None, None, None], adv, best), torch.where(better, now, best_margin)


def _made(scene: Scene, x: Tensor, y: Tensor, *, eps: float, norm: Norm = "linf") -> Made:
    return Made(pgd(scene.network, x, y, eps=eps, steps=scene.effort.steps, norm=norm, generator=scene.generator))


CARD = (
    Attack("pgd_4", "PGD 4/255", partial(_made, eps=4 / 255), depends=("steps",)),
    Attack("pgd_8", "PGD 8/255", partial(_made, eps=8 / 255), depends=("steps",)),
    Attack("l2_1", "PGD in L2, 1.0", partial(_made, eps=1.0, norm="l2"), depends=("steps",)),
)
