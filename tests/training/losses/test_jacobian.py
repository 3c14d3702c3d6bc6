from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from tests.training.toy import Linear, random_network, softplus_network
from training.losses.jacobian import jacobian_norm, jacobian_penalty, jacobian_penalty_fd, random_directions, step_along
from training.models.resnet import Normalise
from training.modes import seeded

SHAPE = (2, 3, 4)  # C, H, W: all sizes differ
D, K = 24, 5


@pytest.fixture
def weight() -> Tensor:
    return torch.randn(K, D, generator=seeded(1)) * torch.linspace(0.2, 3, K)[:, None]


def test_exact_norm_of_a_linear_model(weight: Tensor) -> None:
    norm = jacobian_norm(Linear(weight), torch.rand(6, *SHAPE))
    expected = 0.5 * weight.pow(2).sum()
    assert norm.shape == (6,)
    torch.testing.assert_close(norm, expected.expand(6), rtol=1e-5, atol=0)


@pytest.mark.parametrize("penalty", [jacobian_penalty, jacobian_penalty_fd])
def test_mean_over_many_draws_is_the_exact_value(penalty, weight: Tensor) -> None:
    x = torch.rand(20_000, *SHAPE, generator=seeded(2))  # every image has a direction of its own: 20,000 draws
    estimate = penalty(Linear(weight), x, generator=seeded(3))
    assert float(estimate.detach() / (0.5 * weight.pow(2).sum())) == pytest.approx(1, rel=0.02)


def test_more_projections_are_as_unbiased_and_vary_less(weight: Tensor) -> None:
    x, exact = torch.rand(1, *SHAPE), 0.5 * weight.pow(2).sum()
    one = torch.stack([jacobian_penalty(Linear(weight), x, generator=seeded(4, i)).detach() for i in range(300)])
    eight = torch.stack(
        [jacobian_penalty(Linear(weight), x, projections=8, generator=seeded(5, i)).detach() for i in range(300)]
    )
    assert float(eight.mean() / exact) == pytest.approx(1, rel=0.06)
    assert eight.std() < 0.5 * one.std()  # 1 / sqrt(8) = 0.35


def test_scaling_logits_by_a_scales_the_norm_by_a_squared() -> None:
    network, x = softplus_network(), torch.rand(3, 2, 5, 5, dtype=torch.float64)
    scaled = nn.Sequential(network, _Scale(3.0))
    torch.testing.assert_close(jacobian_norm(scaled, x), 9 * jacobian_norm(network, x))
    torch.testing.assert_close(
        jacobian_penalty(scaled, x, generator=seeded(0)), 9 * jacobian_penalty(network, x, generator=seeded(0))
    )


def test_normalisation_inside_multiplies_by_the_predicted_factor() -> None:
    """Pixels in [0, 1] with the division by std inside: channel c of the Jacobian is divided by std_c."""
    weight = torch.randn(K, D, generator=seeded(1))
    std = [0.25, 0.5]
    x = torch.rand(2, *SHAPE)
    inside = nn.Sequential(Normalise([0.4, 0.6], std), Linear(weight))
    by_channel = weight.view(K, 2, -1).pow(2).sum((0, 2))
    expected = 0.5 * (by_channel[0] / 0.25**2 + by_channel[1] / 0.5**2)
    torch.testing.assert_close(jacobian_norm(inside, x), expected.expand(2), rtol=1e-5, atol=0)
    uniform = nn.Sequential(Normalise([0.4, 0.6], [0.25, 0.25]), Linear(weight))
    torch.testing.assert_close(jacobian_norm(uniform, x), 16 * jacobian_norm(Linear(weight), x), rtol=1e-5, atol=0)


def test_exact_norm_equals_the_loop_over_torch_jacobians() -> None:
    network = random_network(0)
    x = torch.rand(3, 3, 16, 16)
    expected = torch.stack([0.5 * torch.autograd.functional.jacobian(network, image[None]).pow(2).sum() for image in x])
    torch.testing.assert_close(jacobian_norm(network, x), expected, rtol=1e-4, atol=0)


def test_finite_difference_nears_double_backprop_as_h_shrinks() -> None:
    network, x = softplus_network(), torch.rand(8, 2, 5, 5, dtype=torch.float64, generator=seeded(0))
    exact = jacobian_penalty(network, x, generator=seeded(1)).detach()
    errors = [
        abs(float(jacobian_penalty_fd(network, x, h=h, generator=seeded(1)).detach() / exact) - 1)
        for h in (1e-1, 1e-2, 1e-3)
    ]
    assert errors[1] < 0.01
    assert errors[0] > 5 * errors[1] > 25 * errors[2] > 0


def test_finite_difference_has_the_gradient_of_double_backprop() -> None:
    """The direction is held constant, and still the weights' gradient is the penalty's up to O(h)."""
    network, x = softplus_network(), torch.rand(8, 2, 5, 5, dtype=torch.float64, generator=seeded(0))
    parameters = [p for name, p in network.named_parameters() if name.endswith("weight")]
    exact = torch.autograd.grad(jacobian_penalty(network, x, generator=seeded(1)), parameters)
    near = torch.autograd.grad(jacobian_penalty_fd(network, x, h=1e-3, generator=seeded(1)), parameters)
    for a, b in zip(exact, near, strict=True):
        assert float((a - b).norm() / a.norm()) < 0.01


def test_gradcheck_of_the_penalty_in_the_weights() -> None:
    x = torch.rand(2, 1, 3, 3, dtype=torch.float64, generator=seeded(0))

    def penalty(kernel: Tensor, head: Tensor) -> Tensor:
        def predict(z: Tensor) -> Tensor:
            return nn.functional.softplus(nn.functional.conv2d(z, kernel, padding=1)).flatten(1) @ head

        return jacobian_penalty(predict, x, projections=2, generator=seeded(1))

    kernel = torch.randn(2, 1, 3, 3, dtype=torch.float64, generator=seeded(2)).requires_grad_()
    head = torch.randn(18, 3, dtype=torch.float64, generator=seeded(3)).requires_grad_()
    assert torch.autograd.gradcheck(penalty, (kernel, head))


def test_relu_network_has_a_penalty_gradient() -> None:
    """The second derivative in the pixels is 0 almost everywhere, the one in the weights is not."""
    network = random_network(0)
    jacobian_penalty(network, torch.rand(2, 3, 16, 16), generator=seeded(0)).backward()
    assert network.head.weight.grad is not None
    assert network.head.weight.grad.norm() > 0
    assert network.stem[0].weight.grad is not None
    assert network.stem[0].weight.grad.norm() > 0


def test_directions_are_units_and_look_everywhere() -> None:
    v = random_directions(torch.zeros(5000, 3), seeded(0))
    torch.testing.assert_close(v.norm(dim=1), torch.ones(5000))
    torch.testing.assert_close(v.T @ v / 5000, torch.eye(3) / 3, atol=0.02, rtol=0)


def test_step_has_the_length_asked_for_and_none_without_a_gradient() -> None:
    x, gradient = torch.rand(2, 3, 4, 4), torch.randn(2, 3, 4, 4)
    gradient[1] = 0
    length = (step_along(x, gradient, 0.3) - x).flatten(1).norm(dim=1)
    torch.testing.assert_close(length, torch.tensor([0.3, 0.0]), atol=1e-5, rtol=0)


class _Scale(nn.Module):
    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        return self.factor * x
