from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.training.toy import Linear
from training.attacks.margin import margin
from training.attacks.minimal_norm import minimal_norm
from training.models.resnet import SmallResNet
from training.util.module_modes import seeded

WEIGHT = torch.randn(2, 48, generator=seeded(1))
NETWORK = Linear(WEIGHT)
X = 0.3 + 0.4 * torch.rand(12, 3, 4, 4, generator=seeded(2))
Y = NETWORK(X).argmax(1)


@pytest.mark.parametrize("confidence", [0.0, 1.0])
def test_linear_model_reaches_the_distance_to_the_boundary(confidence: float) -> None:
    """(margin + confidence) / ||W_0 - W_1||_2: no less, and not much more."""
    adv = minimal_norm(NETWORK, X, Y, confidence=confidence)
    assert (margin(NETWORK(adv), Y) <= -confidence).all()
    found = (adv - X).flatten(1).norm(dim=1)
    distance = (margin(NETWORK(X), Y) + confidence) / (WEIGHT[0] - WEIGHT[1]).norm()
    assert (found >= distance - 1e-5).all()
    torch.testing.assert_close(found, distance, rtol=0.01, atol=1e-4)


def test_an_image_that_cannot_be_had_comes_back_as_it_was() -> None:
    dead = Linear(torch.zeros(2, 48), torch.tensor([5.0, 0.0]))
    x = X[:2]
    assert torch.equal(minimal_norm(dead, x, torch.tensor([0, 0]), steps=5), x)


def test_a_wrong_answer_by_the_margin_needs_nothing() -> None:
    y = 1 - Y
    free = margin(NETWORK(X), y) <= -0.5
    adv = minimal_norm(NETWORK, X, y, confidence=0.5, steps=20)
    assert free.any()
    torch.testing.assert_close(adv[free], X[free], atol=1e-6, rtol=0)


def test_a_coarse_search_is_judged_exactly(trained: SmallResNet, test_images: tuple[Tensor, Tensor]) -> None:
    x, y = (t[:12] for t in test_images)

    def coarse(z: Tensor) -> Tensor:
        logits = trained(z)
        return logits + 0.3 * torch.sin(40 * logits).detach() if torch.is_grad_enabled() else logits

    adv = minimal_norm(coarse, x, y, confidence=0.5, steps=40)
    changed = (adv != x).flatten(1).any(1)
    assert changed.float().mean() > 0.9
    assert (margin(trained(adv), y)[changed] <= -0.5).all()
    assert adv.min() >= 0
    assert adv.max() <= 1


def test_more_confidence_costs_more(trained: SmallResNet, test_images: tuple[Tensor, Tensor]) -> None:
    x, y = (t[:8] for t in test_images)
    near, far = ((minimal_norm(trained, x, y, confidence=c, steps=25) - x).flatten(1).norm(dim=1) for c in (0.0, 2.0))
    assert (far > near).float().mean() > 0.9


def test_nonsense_is_refused() -> None:
    with pytest.raises(ValueError, match="needed"):
        minimal_norm(NETWORK, X, Y, confidence=-1.0)
