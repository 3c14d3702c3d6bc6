from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.training.toy import Linear, softplus_network
from training.losses.selective import label_score, off_mask_share, selective_penalty, selective_penalty_fd
from training.modes import seeded

BOTH = pytest.mark.parametrize("penalty", [selective_penalty, selective_penalty_fd])


@pytest.fixture
def network() -> nn.Module:
    return softplus_network()


@pytest.fixture
def x() -> Tensor:
    return torch.rand(4, 2, 5, 5, dtype=torch.float64, generator=seeded(0))


Y = torch.tensor([0, 1, 2, 1])


def mask(value: float) -> Tensor:
    return torch.full((4, 5, 5), value, dtype=torch.float64)


def half_mask() -> Tensor:
    m = mask(0)
    m[:, :, :2] = 1
    return m


def test_label_score_is_the_log_probability() -> None:
    logits = torch.randn(4, 3)
    torch.testing.assert_close(label_score(logits, Y), -F.cross_entropy(logits, Y, reduction="none"))


@BOTH
def test_everything_important_costs_exactly_nothing(penalty, network: nn.Module, x: Tensor) -> None:
    assert penalty(network, x, Y, mask(1)).detach() == 0.0


def test_nothing_important_is_the_full_input_gradient_penalty(network: nn.Module, x: Tensor) -> None:
    leaf = x.clone().requires_grad_()
    F.cross_entropy(network(leaf), Y, reduction="sum").backward()
    expected = leaf.grad.flatten(1).pow(2).sum(1).mean()
    assert expected > 0
    torch.testing.assert_close(selective_penalty(network, x, Y, mask(0)).detach(), expected)


def test_linear_model_in_closed_form() -> None:
    """d log p_y / dx = W_y - sum_k p_k W_k."""
    weight, x, y = torch.randn(3, 18), torch.rand(2, 2, 3, 3), torch.tensor([2, 0])
    important = torch.rand(2, 3, 3, generator=seeded(1)).round()
    model = Linear(weight)
    gradient = (weight[y] - model(x).softmax(1) @ weight).view(2, 2, 3, 3)
    outside = gradient * (1 - important[:, None])
    torch.testing.assert_close(selective_penalty(model, x, y, important), outside.pow(2).sum((1, 2, 3)).mean())
    share = outside.flatten(1).norm(dim=1) / gradient.flatten(1).norm(dim=1)
    assert share.min() > 0.1
    assert share.max() < 0.99
    torch.testing.assert_close(off_mask_share(model, x, y, important), share)


@BOTH
def test_gradient_inside_the_mask_is_free(penalty) -> None:
    """Two classes and balanced logits: weights that read important pixels alone change nothing."""
    important = torch.zeros(1, 2, 2)
    important[0, 0] = 1
    x, y = torch.zeros(1, 1, 2, 2, dtype=torch.float64), torch.tensor([0])
    weight = torch.randn(2, 4, dtype=torch.float64, generator=seeded(1))
    edited = weight.clone()
    edited[:, :2] *= 7
    before, after = (penalty(Linear(w), x, y, important.double()) for w in (weight, edited))
    assert before > 0
    torch.testing.assert_close(after, before)
    edited[:, 2:] *= 7
    assert penalty(Linear(edited), x, y, important.double()) > 2 * before


def test_finite_difference_nears_double_backprop_as_h_shrinks(network: nn.Module, x: Tensor) -> None:
    exact = selective_penalty(network, x, Y, half_mask()).detach()
    errors = [
        abs(float(selective_penalty_fd(network, x, Y, half_mask(), h=h).detach() / exact) - 1)
        for h in (1e-1, 1e-2, 1e-3)
    ]
    assert errors[1] < 0.01
    assert errors[0] > 5 * errors[1] > 25 * errors[2] > 0


def test_finite_difference_has_the_gradient_of_double_backprop(network: nn.Module, x: Tensor) -> None:
    parameters = list(network.parameters())
    exact = torch.autograd.grad(selective_penalty(network, x, Y, half_mask()), parameters)
    near = torch.autograd.grad(selective_penalty_fd(network, x, Y, half_mask(), h=1e-4), parameters)
    for a, b in zip(exact, near, strict=True):
        assert float((a - b).norm() / a.norm()) < 0.01


def test_gradcheck_in_the_weights(x: Tensor) -> None:
    def penalty(head: Tensor) -> Tensor:
        return selective_penalty(lambda z: torch.tanh(z.flatten(1) @ head), x[:2], Y[:2], half_mask()[:2])

    assert torch.autograd.gradcheck(penalty, (torch.randn(50, 3, dtype=torch.float64).mul(0.1).requires_grad_(),))


def test_off_mask_share_at_the_ends(network: nn.Module, x: Tensor) -> None:
    torch.testing.assert_close(off_mask_share(network, x, Y, mask(0)), torch.ones(4, dtype=torch.float64))
    assert off_mask_share(network, x, Y, mask(1)).eq(0).all()
