from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from tests.training.toy import Linear, random_network, softplus_network
from training.losses.input_gradient import Method, gradient_penalty
from training.losses.jacobian import jacobian_norm, jacobian_probe, random_directions
from training.models.resnet import Normalise
from training.util.module_modes import seeded
from training.util.signatures import Predict

SHAPE = (2, 3, 4)  # C, H, W: all sizes differ
D, K = 24, 5


METHODS = ("double_backprop", "finite_difference")


def penalty(
    predict: Predict, x: Tensor, generator: torch.Generator, method: Method = "double_backprop", h: float = 0.05
) -> Tensor:
    return gradient_penalty(jacobian_probe(predict(x).detach(), generator), predict, x, method=method, h=h)


@pytest.fixture
def weight() -> Tensor:
    return torch.randn(K, D, generator=seeded(1)) * torch.linspace(0.2, 3, K)[:, None]


def test_exact_norm_of_a_linear_model(weight: Tensor) -> None:
    norm = jacobian_norm(Linear(weight), torch.rand(6, *SHAPE))
    expected = 0.5 * weight.pow(2).sum()
    assert norm.shape == (6,)
    torch.testing.assert_close(norm, expected.expand(6), rtol=1e-5, atol=0)


@pytest.mark.parametrize("method", METHODS)
def test_mean_over_many_draws_is_the_exact_value(method: Method, weight: Tensor) -> None:
    x = torch.rand(20_000, *SHAPE, generator=seeded(2))  # every image has a direction of its own: 20,000 draws
    estimate = penalty(Linear(weight), x, seeded(3), method).detach()
    assert float(estimate / (0.5 * weight.pow(2).sum())) == pytest.approx(1, rel=0.02)


@pytest.mark.parametrize("method", METHODS)
def test_weight_gradient_of_a_linear_model(method: Method, weight: Tensor) -> None:
    """R_J = 1/2 ||W||^2, whose gradient is W."""
    x, model = torch.rand(20_000, *SHAPE, generator=seeded(2)), Linear(weight)
    (gradient,) = torch.autograd.grad(penalty(model, x, seeded(3), method), [model.weight])
    assert float((gradient - weight).norm() / weight.norm()) < 0.05


def test_scaling_logits_by_a_scales_the_norm_by_a_squared() -> None:
    network, x = softplus_network(), torch.rand(3, 2, 5, 5, dtype=torch.float64)
    scaled = nn.Sequential(network, _Scale(3.0))
    torch.testing.assert_close(jacobian_norm(scaled, x), 9 * jacobian_norm(network, x))
    torch.testing.assert_close(penalty(scaled, x, seeded(0)), 9 * penalty(network, x, seeded(0)))


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


def test_gradcheck_of_the_penalty_in_the_weights() -> None:
    x = torch.rand(2, 1, 3, 3, dtype=torch.float64, generator=seeded(0))

    def of_weights(kernel: Tensor, head: Tensor) -> Tensor:
        def predict(z: Tensor) -> Tensor:
            return nn.functional.softplus(nn.functional.conv2d(z, kernel, padding=1)).flatten(1) @ head

        return penalty(predict, x, seeded(1))

    kernel = torch.randn(2, 1, 3, 3, dtype=torch.float64, generator=seeded(2)).requires_grad_()
    head = torch.randn(18, 3, dtype=torch.float64, generator=seeded(3)).requires_grad_()
    assert torch.autograd.gradcheck(of_weights, (kernel, head))


def test_relu_network_has_a_penalty_gradient() -> None:
    """The second derivative in the pixels is 0 almost everywhere, the one in the weights is not."""
    network = random_network(0)
    penalty(network, torch.rand(2, 3, 16, 16), seeded(0)).backward()
    assert network.head.weight.grad is not None
    assert network.head.weight.grad.norm() > 0
    assert network.stem[0].weight.grad is not None
    assert network.stem[0].weight.grad.norm() > 0


def test_directions_are_units_and_look_everywhere() -> None:
    v = random_directions(torch.zeros(5000, 3), seeded(0))
    torch.testing.assert_close(v.norm(dim=1), torch.ones(5000))
    torch.testing.assert_close(v.T @ v / 5000, torch.eye(3) / 3, atol=0.02, rtol=0)


class _Scale(nn.Module):
    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        return self.factor * x
