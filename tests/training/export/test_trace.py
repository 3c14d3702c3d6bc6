from __future__ import annotations

from itertools import product
from typing import cast

import pytest
import torch
from torch import nn

from tests.training.toy import random_network
from training.export.fold import folded
from training.export.trace import (
    adaptive_avg_pool2d,
    adaptive_avg_pool2d_backward,
    convolution_backward,
    max_pool2d_backward,
    trace,
)


@pytest.mark.parametrize(
    ("kernel", "stride", "padding", "dilation", "ceil_mode"),
    [
        (2, 2, 0, 1, False),
        (3, 2, 1, 1, False),
        (3, 2, 0, 1, True),
        (3, 1, 1, 1, False),
        (2, 3, 1, 1, True),
        (2, 1, 0, 2, False),
    ],
)
def test_gradient_of_a_maximum_is_autograds(kernel, stride, padding, dilation, ceil_mode) -> None:
    for size in ((8, 8), (7, 10)):
        x = torch.randn(2, 3, *size, dtype=torch.float64).relu().requires_grad_()  # ties at zero
        arguments = ([kernel] * 2, [stride] * 2, [padding] * 2, [dilation] * 2, ceil_mode)
        out, indices = torch.ops.aten.max_pool2d_with_indices(x, *arguments)
        upstream = torch.randn_like(out)
        (expected,) = torch.autograd.grad(out, x, upstream)
        torch.testing.assert_close(max_pool2d_backward(upstream, x.detach(), *arguments, indices), expected)


@pytest.mark.parametrize("size", [(7, 7), (2, 3), (10, 9)])
def test_adaptive_average_and_its_gradient_are_torchs(size) -> None:
    x = torch.randn(2, 3, *size, dtype=torch.float64, requires_grad=True)
    out = torch.nn.functional.adaptive_avg_pool2d(x, (7, 4))
    upstream = torch.randn_like(out)
    (expected,) = torch.autograd.grad(out, x, upstream)
    torch.testing.assert_close(adaptive_avg_pool2d(x.detach(), [7, 4]), out.detach(), atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(adaptive_avg_pool2d_backward(upstream, x.detach()), expected, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("kernel", [1, 2, 3, (3, 5)])
@pytest.mark.parametrize("stride", [1, 2, 3, (2, 1)])
@pytest.mark.parametrize("padding", [0, 1, 2])
def test_input_gradient_is_autograds(kernel, stride, padding) -> None:
    for size, (groups, dilation) in product([(10, 10), (9, 9), (7, 10)], [(1, 1), (2, 1), (1, 2)]):
        module = nn.Conv2d(4, 6, kernel, stride, padding, groups=groups, dilation=dilation).double()
        x = torch.randn(2, 4, *size, dtype=torch.float64, requires_grad=True)
        out = module(x)
        upstream = torch.randn_like(out)
        (expected,) = torch.autograd.grad(out, x, upstream)
        back = convolution_backward(
            upstream,
            x.detach(),
            module.weight.detach(),
            None,
            list(module.stride),
            list(cast(tuple[int, ...], module.padding)),
            list(module.dilation),
            False,
            [0, 0],
            groups,
            [True, False, False],
        )
        torch.testing.assert_close(back[0], expected)
        assert back[1:] == (None, None)


def test_gradients_of_weights_are_refused() -> None:
    x, weight = torch.rand(1, 2, 4, 4), torch.rand(3, 2, 3, 3)
    rest = ([1, 1], [1, 1], [1, 1])
    with pytest.raises(NotImplementedError):
        convolution_backward(torch.rand(1, 3, 4, 4), x, weight, None, *rest, False, [0, 0], 1, [True, True, False])
    with pytest.raises(NotImplementedError):
        convolution_backward(torch.rand(1, 3, 4, 4), x, weight, None, *rest, True, [0, 0], 1, [True, False, False])
    none = convolution_backward(torch.rand(1, 3, 4, 4), x, weight, None, *rest, False, [0, 0], 1, [False, False, False])
    assert none == (None, None, None)


class Gradient(nn.Module):
    """The input gradient of the first logit."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network.requires_grad_(False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.enable_grad():
            leaf = x.detach().requires_grad_(True)
            (gradient,) = torch.autograd.grad(self.network(leaf)[:, 0].sum(), leaf)
        return gradient


def test_traced_gradient_follows_input_and_weights() -> None:
    network, other = folded(random_network(0)), folded(random_network(1))
    x, elsewhere = torch.rand(5, 3, 16, 16), torch.rand(5, 3, 16, 16)
    traced = trace(Gradient(network), (x,))
    for pixels in (x, elsewhere):
        torch.testing.assert_close(traced(pixels), Gradient(network)(pixels), atol=1e-6, rtol=1e-4)
    assert not torch.allclose(traced(x), traced(elsewhere))
    again = trace(Gradient(other), (x,))(x)
    torch.testing.assert_close(again, Gradient(other)(x), atol=1e-6, rtol=1e-4)
    assert not torch.allclose(traced(x), again)


class ChannelsLast(nn.Module):
    """A linear head behind the mean of a map whose channels lie last in memory, as ConvNeXt's do."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 3))
        self.pool = nn.AdaptiveAvgPool2d(1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        squared = x.permute(0, 2, 3, 1).contiguous().square().permute(0, 3, 1, 2)
        return self.pool(squared).flatten(1) @ self.weight.T


def test_pooling_of_channels_that_lie_last_needs_no_strides() -> None:
    network, x = ChannelsLast(), torch.rand(5, 3, 8, 8)
    traced = trace(Gradient(network), (x,))
    assert not [node for node in traced.graph.nodes if "as_strided" in str(node.target)]
    for pixels in (x, torch.rand(5, 3, 8, 8)):
        expected = 2 * pixels * network.weight[0][:, None, None] / 64
        torch.testing.assert_close(traced(pixels), expected)


def test_stride_one_convolutions_go_back_as_convolutions() -> None:
    network = folded(random_network(0))
    traced = trace(Gradient(network), (torch.rand(5, 3, 16, 16),))
    calls = [node for node in traced.graph.nodes if node.target == torch.ops.aten.convolution.default]
    transposed = [node for node in calls if node.args[6]]
    convolutions = [m for m in network.modules() if isinstance(m, nn.Conv2d)]
    strided = [m for m in convolutions if m.stride != (1, 1)]
    assert len(strided) == 4
    assert len(transposed) == len(strided)
    assert len(calls) == 2 * len(convolutions)
