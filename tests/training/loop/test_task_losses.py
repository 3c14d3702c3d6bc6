from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from tests.training.toy import Linear
from training.loop.task_losses import attacked, kl, kl_pgd, task_losses
from training.recipes.training import Stage
from training.util.module_modes import seeded

WEIGHT = torch.tensor([[1.0, -2.0, 0.5, 3.0], [0.0, 1.0, 1.0, -1.0]])
X = torch.full((6, 1, 2, 2), 0.5)
Y = torch.tensor([0, 1, 0, 1, 0, 1])
EPS = 8 / 255


def stage(**changes: object) -> Stage:
    return Stage.model_validate({"name": "s", "epochs": 1, "lr": 0.1, **changes})


def test_kl_in_closed_form() -> None:
    clean, other = torch.tensor([[0.0, 0.0]]), torch.tensor([[1.0, 0.0]])
    q = torch.tensor(1.0).sigmoid()
    expected = 0.5 * torch.log(0.5 / q) + 0.5 * torch.log(0.5 / (1 - q))
    torch.testing.assert_close(kl(clean, other), expected[None])
    assert kl(other, other).abs().max() < 1e-7
    reference = F.kl_div(other.log_softmax(1), clean.softmax(1), reduction="batchmean")
    torch.testing.assert_close(kl(clean, other).mean(), reference)


def test_trades_is_clean_cross_entropy_and_beta_kl() -> None:
    network = Linear(WEIGHT)
    adversarial = X + 0.01
    losses = task_losses(stage(trades={"beta": 3.0}), network, X, adversarial, Y, smoothing=0.1)
    torch.testing.assert_close(losses["ce_clean"], F.cross_entropy(network(X), Y, label_smoothing=0.1))
    torch.testing.assert_close(losses["kl"], 3 * kl(network(X), network(adversarial)).mean())
    assert set(losses) == {"ce_clean", "kl"}


@pytest.mark.parametrize("clean_weight", [0.0, 0.5])
def test_adversarial_training_in_closed_form(clean_weight: float) -> None:
    network, adversarial = Linear(WEIGHT), X - 0.02
    losses = task_losses(
        stage(adversary={"clean_weight": clean_weight, "clean_fraction": 0.5}), network, X, adversarial, Y
    )
    torch.testing.assert_close(losses["ce_adv"], F.cross_entropy(network(adversarial), Y))
    if clean_weight:
        torch.testing.assert_close(losses["ce_clean"], 0.5 * F.cross_entropy(network(X[:3]), Y[:3]))
    else:
        assert set(losses) == {"ce_adv"}


def test_standard_training_looks_at_clean_images_alone() -> None:
    assert torch.equal(attacked(stage(), Linear(WEIGHT), X, Y, seeded(0)), X)
    losses = task_losses(stage(), Linear(WEIGHT), X, X + 9, Y)
    torch.testing.assert_close(losses["ce"], F.cross_entropy(Linear(WEIGHT)(X), Y))


def test_kl_attack_of_a_linear_network_goes_along_the_weights() -> None:
    """With two classes KL grows with |w . delta|: all steps go one way along the signs of the difference of weights.

    They go 1.5 eps in all, so that they end beyond half the radius wherever they start.
    """
    network = Linear(WEIGHT)
    adversarial = kl_pgd(network, X, eps=EPS, steps=10, generator=seeded(0))
    ways = ((adversarial - X) / EPS).flatten(1) * (WEIGHT[0] - WEIGHT[1]).sign()
    assert ways.abs().min() > 0.49
    assert (ways.sign() == ways[:, :1].sign()).all()
    assert torch.equal(attacked(stage(trades={"eps": 8}), network, X, Y, seeded(0)), adversarial)


def test_kl_attack_stays_in_the_ball_and_in_range() -> None:
    x = torch.rand(8, 1, 2, 2).round()
    adversarial = kl_pgd(Linear(WEIGHT), x, eps=0.2, steps=3, generator=seeded(0))
    assert (adversarial - x).abs().max() <= 0.2 + 1e-6
    assert adversarial.min() >= 0
    assert adversarial.max() <= 1
