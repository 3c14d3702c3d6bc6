"""The strict margin on a linear companion, and the strict companion as a system."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from training.attacks.margin import margin
from training.evaluate.bench import Bench
from training.evaluate.settings import RATES
from training.evaluate.strict import RADIUS, Strict, strict, strict_margin


@pytest.fixture
def linear() -> Callable[[Tensor], Tensor]:
    weight = torch.randn(2, 12, generator=torch.Generator().manual_seed(0))
    return lambda x: x.flatten(1) @ weight.T


def test_a_linear_margin_loses_the_radius_times_the_norm_of_its_gradient(linear: Callable[[Tensor], Tensor]) -> None:
    x, label = torch.rand(3, 3, 2, 2) * 0.5 + 0.25, torch.tensor([0, 1, 0])
    leaf = x.clone().requires_grad_(True)
    (slope,) = torch.autograd.grad(margin(linear(leaf), label).sum(), leaf)
    lost = RADIUS * slope.abs().flatten(1).sum(1)
    torch.testing.assert_close(strict_margin(linear, x, label), margin(linear(x), label) - lost)


def test_its_gradient_takes_the_perturbation_for_a_constant(linear: Callable[[Tensor], Tensor]) -> None:
    x, label = (torch.rand(3, 3, 2, 2) * 0.5 + 0.25).requires_grad_(True), torch.tensor([0, 1, 0])
    strict_slope, slope = (
        torch.autograd.grad(value.sum(), x)[0] for value in (strict_margin(linear, x, label), margin(linear(x), label))
    )
    torch.testing.assert_close(strict_slope, slope)


def test_thresholds_flag_their_share_of_clean_images(fresh: Callable[..., Bench]) -> None:
    systems = Strict(bench := fresh())
    x = bench.pixels(bench.data.test.x)
    margins = strict_margin(systems.companion, x, bench.targets(bench.labels["answering"])).detach().numpy()
    for rate, threshold in zip(RATES, systems.thresholds, strict=True):
        assert (-margins > threshold).mean() <= rate
    assert np.all(np.diff(systems.thresholds) <= 0)


def test_more_flags_let_fewer_attacks_through(fresh: Callable[..., Bench]) -> None:
    found = strict(fresh(strict=4), eps=8)
    row = found.section["strict"]["eps_8"]
    assert row["n"] == 4
    assert row["fpr_0.01"] >= row["fpr_0.05"] >= row["fpr_0.1"]
    assert set(found.outcomes) == {"strict_8_0.01", "strict_8_0.05", "strict_8_0.1"}
