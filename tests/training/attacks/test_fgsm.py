from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.training.toy import Linear
from training.attacks.fgsm import fgsm, momentum_fgsm
from training.attacks.margin import margin
from training.models.resnet import SmallResNet
from training.util.module_modes import seeded

WEIGHT = torch.randn(2, 48, generator=seeded(1))
NETWORK = Linear(WEIGHT)
X = 0.3 + 0.4 * torch.rand(5, 3, 4, 4, generator=seeded(2))
Y = torch.tensor([0, 1, 0, 1, 1])


@pytest.mark.parametrize("loss", ["margin", "ce"])
def test_the_margin_falls_by_eps_times_the_l1_norm(loss) -> None:
    adv = fgsm(NETWORK, X, Y, eps=0.1, loss=loss)
    fallen = margin(NETWORK(X), Y) - margin(NETWORK(adv), Y)
    torch.testing.assert_close(fallen, (0.1 * (WEIGHT[0] - WEIGHT[1]).abs().sum()).expand(5))


def test_stays_in_range() -> None:
    adv = fgsm(NETWORK, X.round(), Y, eps=0.1)
    assert adv.min() >= 0
    assert adv.max() <= 1
    assert (adv - X.round()).abs().max() <= 0.1 + 1e-6


def test_momentum_reaches_the_corner_of_the_mean_network() -> None:
    """The sign of the surrogates' mean slope, which is neither one's own; with one step it is FGSM."""
    other = torch.randn(2, 48, generator=seeded(3))
    for steps in (1, 7):
        adv = momentum_fgsm([NETWORK, Linear(other)], X, Y, eps=0.1, steps=steps)
        slope = (WEIGHT + other)[Y] - (WEIGHT + other)[1 - Y]
        torch.testing.assert_close(adv, X - 0.1 * slope.view_as(X).sign())


def test_momentum_carries_on_where_the_gradient_turns() -> None:
    """Loss with its maximum at x + 0.025, steps of 0.01: gradients without memory turn there, their sum goes on."""

    def peak(x: Tensor) -> Tensor:
        depth = 10 * (x - X - 0.025).pow(2).flatten(1).sum(1)
        return torch.stack([depth, torch.zeros_like(depth)], 1)

    y = torch.zeros(5, dtype=torch.long)
    for decay, end in ((0.0, 0.03), (1.0, 0.05)):
        adv = momentum_fgsm([peak], X, y, eps=0.05, steps=5, decay=decay)
        torch.testing.assert_close(adv - X, torch.full_like(X, end))


def test_surrogates_carry_over(trained: SmallResNet, test_images: tuple[Tensor, Tensor]) -> None:
    x, y = (t[:40] for t in test_images)
    adv = momentum_fgsm([trained], x, y, eps=8 / 255)
    assert (trained(adv).argmax(1) == y).float().mean() < 0.1
    assert (adv - x).abs().max() <= 8 / 255 + 1e-6


def test_nonsense_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one"):
        momentum_fgsm([], X, Y, eps=0.1)
