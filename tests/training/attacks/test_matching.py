from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.training.toy import Linear
from training.attacks.matching import match_features, match_logits, nearest_other, pooled_features
from training.models.resnet import SmallResNet
from training.util.module_modes import seeded

WEIGHT = torch.randn(2, 48, generator=seeded(1))
NETWORK = Linear(WEIGHT)
X = 0.3 + 0.4 * torch.rand(6, 3, 4, 4, generator=seeded(2))


class Pooling:
    """Two features: the spatial means of the first two channels."""

    def taps(self, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        return x.mean((2, 3)), {"early": x[:, 2:], "last": x[:, :2]}


def test_logits_within_reach_are_reached() -> None:
    """Targets made by a perturbation of half the budget."""
    target = NETWORK(X + 0.05 * torch.randn(X.shape, generator=seeded(3)).sign()).detach()
    adv = match_logits(NETWORK, X, target, eps=0.1)
    before, after = ((NETWORK(z) - target).norm(dim=1) for z in (X, adv))
    assert (after < 0.05 * before).all()
    assert (adv - X).abs().max() <= 0.1 + 1e-6


def test_beyond_reach_the_corner_is() -> None:
    """Means of 9 are out of reach: every pixel of both channels goes up by eps; the third, unseen, stays."""
    adv = match_features(Pooling(), X, torch.full((6, 2), 9.0), eps=0.1, steps=20)
    torch.testing.assert_close(adv[:, :2], X[:, :2] + 0.1)
    assert torch.equal(adv[:, 2], X[:, 2])


def test_a_target_that_is_met_moves_nothing() -> None:
    features = pooled_features(Pooling(), X)
    assert torch.equal(match_features(Pooling(), X, features, eps=0.1, steps=5), X)


def test_nearest_guide_of_another_class() -> None:
    guides, classes = torch.tensor([[0.0], [1.0], [5.0]]), torch.tensor([0, 1, 2])
    found = nearest_other(torch.tensor([[0.2], [0.2], [4.0]]), guides, classes, torch.tensor([0, 1, 2]))
    assert found.flatten().tolist() == [1.0, 0.0, 1.0]


def test_matched_features_are_answered_with_the_guides_class(
    trained: SmallResNet, test_images: tuple[Tensor, Tensor]
) -> None:
    x, y = (t[:24] for t in test_images)
    features = pooled_features(trained, x)
    target = nearest_other(features, features, y, y)
    adv = match_features(trained, x, target, eps=8 / 255, steps=40)
    before, after = ((pooled_features(trained, z) - target).norm(dim=1) for z in (x, adv))
    assert (after < before).all()
    assert (trained(adv).argmax(1) != y).float().mean() > 0.9


def test_nonsense_is_refused() -> None:
    with pytest.raises(ValueError, match="needed"):
        match_logits(NETWORK, X, NETWORK(X), eps=0.1, steps=0)
