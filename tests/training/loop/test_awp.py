from __future__ import annotations

import pytest
import torch
from torch import nn

from tests.training.toy import Linear, random_network
from training.loop.awp import perturbed_weights

GAMMA = 0.05


def test_weights_move_along_their_gradient_by_a_share_of_their_norm() -> None:
    network = Linear(torch.tensor([[3.0, 0.0], [0.0, 4.0]]))
    direction = torch.tensor([[0.0, 2.0], [0.0, 0.0]])
    with perturbed_weights(network, (network.weight * direction).sum, gamma=GAMMA):
        moved = torch.tensor([[3.0, 5 * GAMMA], [0.0, 4.0]])  # |w| = 5, the gradient's direction is one entry
        torch.testing.assert_close(network.weight.data, moved)
        assert torch.equal(network.bias, torch.zeros(2))
    assert torch.equal(network.weight, torch.tensor([[3.0, 0.0], [0.0, 4.0]]))


def test_every_layer_by_its_own_norm_and_bits_and_statistics_come_back() -> None:
    network = random_network(0, width=8).train().to(memory_format=torch.channels_last)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    x = torch.rand(8, 3, 16, 16)

    def loss() -> torch.Tensor:
        return network(x).square().mean()

    start = loss()
    network.load_state_dict(before)  # a forward in training mode moved its statistics
    with perturbed_weights(network, loss, gamma=GAMMA):
        for name, parameter in network.named_parameters():
            size = GAMMA * before[name].norm() if parameter.dim() > 1 else torch.zeros(())
            torch.testing.assert_close((parameter.detach() - before[name]).norm(), size, rtol=1e-4, atol=1e-7)
        assert all(torch.equal(b, before[name]) for name, b in network.named_buffers() if "running" in name)
        assert loss() > start
    assert all(torch.equal(p, before[name]) for name, p in network.named_parameters())
    assert all(module.momentum == 0.1 for module in network.modules() if isinstance(module, nn.BatchNorm2d))


def test_weights_come_back_after_an_error() -> None:
    network = Linear(torch.eye(2))
    with pytest.raises(KeyError), perturbed_weights(network, network.weight.sum, gamma=GAMMA):
        raise KeyError
    assert torch.equal(network.weight, torch.eye(2))


def test_no_gradient_no_move() -> None:
    network = Linear(torch.eye(2))
    with perturbed_weights(network, lambda: 0 * network.weight.sum(), gamma=GAMMA):
        assert torch.equal(network.weight, torch.eye(2))
