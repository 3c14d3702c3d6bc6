"""Our attacks beside foolbox's (Rauber et al. 2020) on a small trained network: ours are to be no weaker.

Robust accuracy under ours may be higher by `TOLERANCE` of the images at most, at equal loss, steps, step sizes and
restarts.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from training.attacks.fgsm import fgsm
from training.attacks.minimal_norm import minimal_norm
from training.attacks.pgd import pgd
from training.models.resnet import SmallResNet
from training.util.module_modes import seeded

foolbox = pytest.importorskip("foolbox", reason="`make reference` installs it")
pytestmark = pytest.mark.reference
TOLERANCE = 0.04  # two images: random starts differ
STEPS, IMAGES = 10, 50
LINF = (3 / 255, 4 / 255, 5 / 255)
L2 = (0.25, 0.35, 0.45)


@pytest.fixture
def subject(trained: SmallResNet, test_images: tuple[Tensor, Tensor]) -> tuple[SmallResNet, Tensor, Tensor]:
    x, y = test_images
    right = torch.flatten(torch.nonzero(trained(x).argmax(1) == y))[:IMAGES]
    return trained, x[right], y[right]


def standing(network: SmallResNet, adversarial: Tensor, y: Tensor) -> float:
    return float((network(adversarial).argmax(1) == y).float().mean())


def compare(subject, ours: Callable[[float], Tensor], attack: Any, radii: tuple[float, ...]) -> None:
    network, x, y = subject
    _, theirs, _ = attack(foolbox.PyTorchModel(network, bounds=(0, 1)), x, y, epsilons=radii)
    there = [standing(network, adversarial, y) for adversarial in theirs]
    here = [standing(network, ours(eps), y) for eps in radii]
    assert any(0.1 < share < 0.9 for share in there)  # or the comparison says nothing
    assert all(a <= b + TOLERANCE for a, b in zip(here, there, strict=True)), (here, there)


def test_fgsm(subject) -> None:
    network, x, y = subject
    attack = foolbox.attacks.FGSM()
    compare(subject, lambda eps: fgsm(network, x, y, eps=eps, loss="ce"), attack, LINF)
    _, theirs, _ = attack(foolbox.PyTorchModel(network, bounds=(0, 1)), x, y, epsilons=LINF[1])
    assert ((fgsm(network, x, y, eps=LINF[1], loss="ce") - theirs).abs() < 1e-5).float().mean() > 0.999


def test_pgd_linf(subject) -> None:
    network, x, y = subject
    compare(
        subject,
        lambda eps: pgd(network, x, y, eps=eps, steps=STEPS, loss="ce", generator=seeded(0)),
        foolbox.attacks.LinfPGD(rel_stepsize=2.5 / STEPS, steps=STEPS),
        LINF,
    )


def test_pgd_l2(subject) -> None:
    network, x, y = subject
    compare(
        subject,
        lambda eps: pgd(network, x, y, eps=eps, steps=STEPS, norm="l2", loss="ce", generator=seeded(0)),
        foolbox.attacks.L2PGD(rel_stepsize=2.5 / STEPS, steps=STEPS),
        L2,
    )


def test_minimal_norm(subject) -> None:
    """All fall, and the median norm is at most 1 % more than that of their DDN."""
    network, x, y = subject
    ours = minimal_norm(network, x, y, steps=50)
    _, theirs, _ = foolbox.attacks.DDNAttack(steps=50)(
        foolbox.PyTorchModel(network, bounds=(0, 1)), x, y, epsilons=None
    )
    assert standing(network, ours, y) == 0
    near, far = ((adv - x).flatten(1).norm(dim=1) for adv in (ours, theirs))
    assert near.median() <= 1.01 * far.median()
