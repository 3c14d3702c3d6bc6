from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.training.toy import Linear
from training.attacks.margin import margin
from training.attacks.rays import rays
from training.attacks.square import QueriesSpent
from training.util.module_modes import seeded

WEIGHT = torch.randn(2, 16, generator=seeded(1))
NETWORK = Linear(WEIGHT)
X = torch.randint(60, 190, (8, 1, 4, 4), generator=seeded(2)) / 255
Y = NETWORK(X).argmax(1)
# Steps of 1/255 to the boundary along the best of all vectors of signs.
STEPS = (margin(NETWORK(X), Y) / (WEIGHT[0] - WEIGHT[1]).abs().sum() * 255).ceil().detach()


@torch.no_grad()
def fooled(images: Tensor, labels: Tensor) -> Tensor:
    return NETWORK(images).argmax(1) != labels


def test_finds_the_right_signs_of_a_linear_model() -> None:
    """Within one step beyond the distance to the boundary all fall, by labels alone; below it none."""
    for k in range(4):
        one = X[k : k + 1], Y[k : k + 1]
        eps = float(STEPS[k] + 1) / 255
        found = rays(fooled, *one, eps=eps, queries=600, generator=seeded(0))
        assert found.succeeded.all()
        assert fooled(found.adversarial, one[1]).all()
        assert (found.adversarial - one[0]).abs().max() <= eps + 1e-6
        assert not rays(fooled, *one, eps=float(STEPS[k] - 1) / 255, queries=100, generator=seeded(0)).succeeded.any()


def test_queries_are_counted_and_limited() -> None:
    asked = []

    def counting(images: Tensor, labels: Tensor) -> Tensor:
        asked.append(len(images))
        return fooled(images, labels)

    found = rays(counting, X, Y, eps=1e-9, queries=25, generator=seeded(0))
    assert found.queries.tolist() == [25] * len(X)
    assert sum(asked) == 25 * len(X)
    assert torch.equal(found.adversarial, X)  # no success, no image


def test_images_are_such_as_a_file_can_carry() -> None:
    seen: list[Tensor] = []

    def watching(images: Tensor, labels: Tensor) -> Tensor:
        seen.append(images)
        return fooled(images, labels)

    rays(watching, X, Y, eps=0.05, queries=40, generator=seeded(0))
    asked = torch.cat(seen)
    torch.testing.assert_close(asked * 255, (asked * 255).round(), atol=1e-4, rtol=0)
    assert asked.min() >= 0
    assert asked.max() <= 1


def test_goes_on_until_a_success_is_confirmed() -> None:
    """Confirmation is asked for within eps only, of images that fool; it may come later, at a smaller radius."""
    eps, seen = 40 / 255, []

    def confirmed(images: Tensor, labels: Tensor) -> Tensor:
        assert fooled(images, labels).all()
        assert ((images[:, None] - X[None]).abs().flatten(2).amax(2).amin(1) <= eps + 1e-6).all()
        seen.append(len(images))
        return torch.full((len(images),), len(seen) > 6)

    found = rays(fooled, X, Y, eps=eps, queries=400, confirmed=confirmed, generator=seeded(0))
    plain = rays(fooled, X, Y, eps=eps, queries=400, generator=seeded(0))
    assert found.succeeded.any()
    assert (found.queries[found.succeeded] >= plain.queries[found.succeeded]).all()
    assert not rays(
        fooled, X, Y, eps=eps, queries=60, confirmed=lambda images, _y: torch.zeros(len(images)), generator=seeded(0)
    ).succeeded.any()


def test_a_spent_budget_ends_it() -> None:
    def spent(images: Tensor, labels: Tensor) -> Tensor:
        raise QueriesSpent("spent")

    assert rays(spent, X, Y, eps=0.1).queries.tolist() == [0] * len(X)


def test_nonsense_is_refused() -> None:
    with pytest.raises(ValueError, match="needed"):
        rays(fooled, X, Y, eps=-1.0)
