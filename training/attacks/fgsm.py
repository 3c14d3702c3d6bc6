"""One step, and a few steps with momentum on several networks: attacks that transfer to other networks."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from training.attacks.pgd import Loss, loss_gradient, project
from training.attacks.unaware import Attack, Made, Scene, Trained
from training.util.signatures import Predict


def fgsm(predict: Predict, x: Tensor, y: Tensor, *, eps: float, loss: Loss = "margin") -> Tensor:
    """The fast gradient sign method (Goodfellow et al. 2015, arXiv 1412.6572): x + eps sign(gradient), in [0, 1]."""
    gradient, _ = loss_gradient(predict, x, y, loss)
    return project(x + eps * gradient.sign(), x, eps, "linf")


def momentum_fgsm(
    predicts: Sequence[Predict], x: Tensor, y: Tensor, *, eps: float, steps: int = 10, decay: float = 1.0
) -> Tensor:
    """MI-FGSM on the mean logits of `predicts` (Dong et al. 2018, arXiv 1710.06081): Linf, for transfer to others.

    Cross-entropy, gradients divided by their mean absolute value and summed with `decay`, steps of eps / steps. The
    last iterate is returned; the surrogates need not be fooled by it.
    """
    if not predicts or eps < 0 or steps < 1:
        raise ValueError(f"{len(predicts)} surrogates, eps {eps}, steps {steps}: at least one, eps >= 0, steps >= 1")
    adv, momentum = x.clone(), torch.zeros_like(x)
    for _ in range(steps):
        adv.requires_grad_(True)
        logits = torch.stack([predict(adv).float() for predict in predicts]).mean(0)
        (gradient,) = torch.autograd.grad(F.cross_entropy(logits, y, reduction="sum"), adv)
        size = gradient.abs().mean((1, 2, 3), keepdim=True)
        momentum = decay * momentum + gradient / size.clamp_min(1e-20)
        adv = project(adv.detach() + eps / steps * momentum.sign(), x, eps, "linf")
    return adv


def _made(scene: Scene, x: Tensor, y: Tensor, *, eps: float) -> Made:
    return Made(fgsm(scene.network, x, y, eps=eps / 255))


def _transferred(scene: Scene, x: Tensor, y: Tensor, *, eps: float, trained: Trained = "ordinarily") -> Made:
    return Made(momentum_fgsm(scene.surrogates(trained), x, y, eps=eps / 255))


CARD = (Attack("fgsm_8", "FGSM 8/255", partial(_made, eps=8)),)
TRANSFERRED = tuple(
    Attack(f"transfer_{eps}", f"transfer {eps}/255", partial(_transferred, eps=eps), "1", depends=("surrogate_epochs",))
    for eps in (8, 16)
)
ROBUSTLY_TRANSFERRED = tuple(
    Attack(
        f"transfer_robust_{eps}",
        f"transfer {eps}/255 from adversarially trained networks",
        partial(_transferred, eps=eps, trained="adversarially"),
        "1",
        depends=("surrogate_epochs",),
    )
    for eps in (8, 16)
)
