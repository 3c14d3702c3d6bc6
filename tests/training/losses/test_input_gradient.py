"""Both ways to differentiate a penalty of the input gradient, for every penalty there is."""

from __future__ import annotations

from typing import Literal

import pytest
import torch
from torch import Tensor, nn

from tests.training.toy import softplus_network
from training.losses.align import align_probe
from training.losses.input_gradient import Method, Probe, gradient_penalty, penalise, step_along
from training.losses.jacobian import jacobian_probe
from training.losses.selective import selective_probe
from training.util.module_modes import seeded

Y = torch.tensor([0, 1, 2, 1, 0, 2, 1, 0])
LEFT = torch.zeros(8, 6, 6, dtype=torch.float64)
LEFT[:, :, :2] = 1
SALIENCY = torch.rand(8, 6, 6, dtype=torch.float64, generator=seeded(4))
PROBES = {
    "jacobian": lambda: jacobian_probe(torch.zeros(8, 3, dtype=torch.float64), seeded(1)),
    "absolute": lambda: selective_probe(Y, LEFT),
    "ratio": lambda: selective_probe(Y, LEFT, form="ratio"),
    "align": lambda: align_probe(Y, SALIENCY, grid=3),
}
EVERY = pytest.mark.parametrize("name", PROBES)


@pytest.fixture
def network() -> nn.Module:
    return softplus_network(side=6)


@pytest.fixture
def x() -> Tensor:
    return torch.rand(8, 2, 6, 6, dtype=torch.float64, generator=seeded(0))


def weight_gradient(network: nn.Module, penalty: Tensor) -> Tensor:
    parts = torch.autograd.grad(penalty, list(network.parameters()), materialize_grads=True)
    return torch.cat([part.flatten() for part in parts])


@EVERY
def test_both_have_the_same_value(name: str, network: nn.Module, x: Tensor) -> None:
    exact, near = (
        gradient_penalty(PROBES[name](), network, x, method=method)
        for method in ("double_backprop", "finite_difference")
    )
    assert exact.detach() > 0
    torch.testing.assert_close(near, exact)


@EVERY
def test_finite_difference_has_the_weight_gradient_of_double_backprop(name: str, network: nn.Module, x: Tensor) -> None:
    """Direction and size within a thousandth at h = 1e-3, and the error falls with h."""
    exact = weight_gradient(network, gradient_penalty(PROBES[name](), network, x, method="double_backprop"))
    near = [
        weight_gradient(network, gradient_penalty(PROBES[name](), network, x, method="finite_difference", h=h))
        for h in (1e-1, 1e-2, 1e-3)
    ]
    errors = [float((found - exact).norm() / exact.norm()) for found in near]
    assert errors[0] > 5 * errors[1] > 25 * errors[2] > 0
    assert errors[2] < 1e-3
    assert float(torch.cosine_similarity(near[2], exact, dim=0)) == pytest.approx(1, abs=1e-6)
    assert float(near[2].norm() / exact.norm()) == pytest.approx(1, abs=1e-3)


@EVERY
def test_gradcheck_in_the_weights(name: str, x: Tensor) -> None:
    head = torch.randn(72, 3, dtype=torch.float64, generator=seeded(2)).mul(0.1).requires_grad_()

    def penalty(weight: Tensor) -> Tensor:
        return gradient_penalty(
            PROBES[name](), lambda z: torch.tanh(z.flatten(1) @ weight), x, method="double_backprop"
        )

    assert torch.autograd.gradcheck(penalty, (head,))


@EVERY
def test_a_shared_forward_changes_nothing(name: str, network: nn.Module, x: Tensor) -> None:
    alone = weight_gradient(network, gradient_penalty(PROBES[name](), network, x, method="finite_difference"))
    x = x.clone().requires_grad_()
    logits = network(x)
    pair = [penalise(PROBES[name](), network, x, logits, method="finite_difference") for _ in range(2)]
    torch.testing.assert_close(weight_gradient(network, pair[0] + pair[1]), 2 * alone)


@pytest.mark.parametrize("method", ["double_backprop", "finite_difference"])
@pytest.mark.parametrize("degree", [0, 2])
def test_a_quadratic_score_in_closed_form(degree: Literal[0, 2], method: Method) -> None:
    """q = w^2 x^2 / 2 with x = 3, w = 2, phi(g) = g^2 / 2: g = w^2 x = 12, d phi / dw = g dg/dw = 2 w x g = 144.

    s = w^2 (x + h / 2) = 12.2 at h = 0.1: ds/dw = 2 w (x + h / 2) = 12.2; s ds/dw if descended squared, else g ds/dw.
    """
    x, weight = torch.tensor([[[[3.0]]]], dtype=torch.float64), torch.tensor(2.0, dtype=torch.float64)
    weight.requires_grad_()
    probe = Probe(lambda logits: logits[:, 0], lambda gradient: gradient.pow(2).sum() / 2, degree)

    def predict(z: Tensor) -> Tensor:
        return (weight * z).pow(2).flatten(1) / 2

    penalty = gradient_penalty(probe, predict, x, method=method, h=0.1)
    assert penalty.item() == pytest.approx(72)
    expected = 144 if method == "double_backprop" else 12.2 * (12.2 if degree == 2 else 12)
    assert torch.autograd.grad(penalty, weight)[0].item() == pytest.approx(expected)


def test_the_squared_slope_stops_at_zero() -> None:
    """A slope that has turned round within h is not pushed on: descending it lowers its size."""
    bend = torch.tensor(-40.0, dtype=torch.float64).requires_grad_()
    x = torch.zeros(1, 1, 1, 1, dtype=torch.float64)

    def predict(z: Tensor) -> Tensor:
        return (z + bend * z.pow(2)).flatten(1)

    probe = Probe(lambda logits: logits[:, 0], lambda gradient: gradient.pow(2).sum() / 2)
    penalty = gradient_penalty(probe, predict, x, method="finite_difference", h=0.1)
    assert torch.autograd.grad(penalty, bend)[0] < 0  # s = 1 + 0.1 bend = -3: descent raises the bend


def test_no_direction_no_slope(network: nn.Module, x: Tensor) -> None:
    """Where everything is important the penalty is exactly 0 and so is its gradient."""
    probe = selective_probe(Y, torch.ones_like(LEFT))
    penalty = gradient_penalty(probe, network, x, method="finite_difference")
    assert penalty.detach() == 0
    assert weight_gradient(network, penalty).eq(0).all()


def test_step_has_the_length_asked_for_and_none_without_a_gradient() -> None:
    x, gradient = torch.rand(2, 3, 4, 4), torch.randn(2, 3, 4, 4)
    gradient[1] = 0
    length = (step_along(x, gradient, 0.3) - x).flatten(1).norm(dim=1)
    torch.testing.assert_close(length, torch.tensor([0.3, 0.0]), atol=1e-5, rtol=0)
