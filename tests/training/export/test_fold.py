from __future__ import annotations

import torch
from torch import nn

from tests.training.toy import random_network
from training.export.fold import folded
from training.models import ModelSpec, build_model


def test_folded_network_agrees_and_has_no_batchnorm() -> None:
    network, x = random_network(0), torch.rand(4, 3, 16, 16)
    fold = folded(network)
    assert any(isinstance(m, nn.BatchNorm2d) for m in network.modules())  # a copy was folded
    assert not any(isinstance(m, nn.BatchNorm2d) for m in fold.modules())
    (a, taps), (b, folded_taps) = network.taps(x), fold.taps(x)
    torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)
    for name in taps:
        torch.testing.assert_close(taps[name], folded_taps[name], atol=1e-5, rtol=1e-4)
    assert network.tap_channels == fold.tap_channels


def test_deeper_network_with_a_strided_stem() -> None:
    torch.manual_seed(0)
    spec = ModelSpec(width=4, blocks=(2, 1), stem_stride=2)
    network = build_model(spec, classes=3, mean=[0.5], std=[0.2]).train()
    network(torch.rand(16, 1, 20, 20))  # statistics that are not 0 and 1
    x = torch.rand(2, 1, 20, 20)
    fold = folded(network)
    assert network.training
    torch.testing.assert_close(fold(x), network.eval()(x), atol=1e-5, rtol=1e-4)
    assert not any(p.requires_grad for p in fold.parameters())


def test_what_no_folding_changes_is_not_copied() -> None:
    network = random_network(0)
    trained = [parameter.requires_grad for parameter in network.parameters()]
    places = {parameter.data_ptr() for parameter in network.parameters()}
    fold = folded(network)
    shared = [parameter.data_ptr() in places for parameter in fold.parameters()]
    assert any(shared)  # the head
    assert not all(shared)  # the convolutions before BatchNorm
    assert [parameter.requires_grad for parameter in network.parameters()] == trained
    assert not any(parameter.requires_grad for parameter in fold.parameters())
