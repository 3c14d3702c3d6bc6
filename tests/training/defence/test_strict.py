"""The strict margin on a linear network."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from training.defence.scores.companion_strict import RADIUS, strict_margin
from training.defence.signals.margins import one_hot_margin

LABEL = torch.eye(2)[[0, 1, 0]]


@pytest.fixture
def linear() -> Callable[[Tensor], Tensor]:
    weight = torch.randn(2, 12, generator=torch.Generator().manual_seed(0))
    return lambda x: x.flatten(1) @ weight.T


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_a_linear_margin_loses_the_radius_times_the_norm_of_its_gradient(
    linear: Callable[[Tensor], Tensor], steps: int
) -> None:
    x = (torch.rand(3, 3, 2, 2) * 0.5 + 0.25).requires_grad_(True)
    plain = one_hot_margin(linear(x), LABEL)
    (slope,) = torch.autograd.grad(plain.sum(), x)
    lost = RADIUS * slope.abs().flatten(1).sum(1)
    torch.testing.assert_close(strict_margin(linear, x, LABEL, steps=steps), plain.detach() - lost)


def test_without_steps_it_is_the_margin(linear: Callable[[Tensor], Tensor]) -> None:
    x = torch.rand(3, 3, 2, 2)
    torch.testing.assert_close(strict_margin(linear, x, LABEL, steps=0), one_hot_margin(linear(x), LABEL))


def test_the_attack_stays_in_the_range_of_pixels(linear: Callable[[Tensor], Tensor]) -> None:
    seen: list[Tensor] = []

    def watched(x: Tensor) -> Tensor:
        seen.append(x.detach())
        return linear(x)

    x = torch.rand(3, 3, 2, 2).round()
    strict_margin(watched, x, LABEL, steps=2)
    assert len(seen) == 3
    for image in seen:
        assert image.min() >= 0
        assert image.max() <= 1
        assert (image - x).abs().max() <= RADIUS + 1e-6


def test_its_gradient_takes_the_perturbation_for_a_constant(linear: Callable[[Tensor], Tensor]) -> None:
    x = (torch.rand(3, 3, 2, 2) * 0.5 + 0.25).requires_grad_(True)
    strict, plain = (
        torch.autograd.grad(value.sum(), x)[0]
        for value in (strict_margin(linear, x, LABEL), one_hot_margin(linear(x), LABEL))
    )
    torch.testing.assert_close(strict, plain)
