"""Our attacks beside foolbox's (Rauber et al. 2020) on a small trained network: ours are to be no weaker.

Robust accuracy under ours may be higher by `TOLERANCE` of the images at most, at equal steps and restarts.
"""

from __future__ import annotations

from collections.abc import Callable

import foolbox
import pytest
import torch
from torch import Tensor

from training.attacks.fgsm import fgsm
from training.attacks.minimal_norm import minimal_norm
from training.attacks.pgd import pgd
from training.models.resnet import SmallResNet
from training.modes import seeded

pytestmark = pytest.mark.reference
TOLERANCE = 0.02
STEPS = 20


@pytest.fixture
def subject(trained: SmallResNet, test_images: tuple[Tensor, Tensor]) -> tuple[SmallResNet, Tensor, Tensor]:
    x, y = test_images
    right = trained(x).argmax(1) == y
    return trained, x[right], y[right]


def theirs(subject, attack: foolbox.attacks.Attack, eps: float) -> Tensor:
    network, x, y = subject
    _, adversarial, _ = attack(foolbox.PyTorchModel(network, bounds=(0, 1)), x, y, epsilons=eps)
    return adversarial


def standing(subject, adversarial: Tensor) -> float:
    network, _, y = subject
    return float((network(adversarial).argmax(1) == y).float().mean())


def compare(subject, ours: Callable[[Tensor, Tensor], Tensor], attack: foolbox.attacks.Attack, eps: float) -> None:
    _, x, y = subject
    here, there = standing(subject, ours(x, y)), standing(subject, theirs(subject, attack, eps))
    assert 0.05 < there < 0.95  # or the comparison says nothing
    assert here <= there + TOLERANCE


@pytest.mark.parametrize("eps", [2 / 255, 3 / 255])
def test_fgsm(subject, eps: float) -> None:
    attack = foolbox.attacks.FGSM()
    compare(subject, lambda x, y: fgsm(subject[0], x, y, eps=eps, loss="ce"), attack, eps)
    torch.testing.assert_close(
        fgsm(subject[0], subject[1], subject[2], eps=eps, loss="ce"), theirs(subject, attack, eps)
    )


@pytest.mark.parametrize("eps", [2 / 255, 3 / 255])
def test_pgd_linf(subject, eps: float) -> None:
    attack = foolbox.attacks.LinfPGD(steps=STEPS)
    compare(subject, lambda x, y: pgd(subject[0], x, y, eps=eps, steps=STEPS, generator=seeded(0)), attack, eps)


@pytest.mark.parametrize("eps", [0.15, 0.25])
def test_pgd_l2(subject, eps: float) -> None:
    attack = foolbox.attacks.L2PGD(steps=STEPS)
    compare(
        subject, lambda x, y: pgd(subject[0], x, y, eps=eps, steps=STEPS, norm="l2", generator=seeded(0)), attack, eps
    )


def test_minimal_norm(subject) -> None:
    """All fall, the median norm is at most 1 % more, and within the median radius no fewer fall."""
    network, x, y = subject
    ours, others = minimal_norm(network, x, y), theirs(subject, foolbox.attacks.DDNAttack(steps=100), None)
    assert standing(subject, ours) == 0
    near, far = ((adv - x).flatten(1).norm(dim=1) for adv in (ours, others))
    assert near.median() <= 1.01 * far.median()
    assert (near <= far.median()).float().mean() >= 0.5 - TOLERANCE
