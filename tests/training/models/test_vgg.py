from __future__ import annotations

import pytest
import torch
from torch import nn

from training.export.fold import folded
from training.models import ModelSpec, build_model
from training.models.vgg import Vgg16

NAMES = [f"block{b}_conv{c}" for b, count in enumerate((2, 2, 3, 3, 3), 1) for c in range(1, count + 1)]


@pytest.fixture(scope="module")
def network() -> Vgg16:
    torch.manual_seed(0)
    made = build_model(ModelSpec(arch="vgg16_bn", width=4), classes=5, mean=[0.4] * 3, std=[0.2] * 3)
    assert isinstance(made, Vgg16)
    made(torch.rand(16, 3, 32, 32))
    return made.eval().requires_grad_(False)


def test_thirteen_convolutions_in_five_blocks(network) -> None:
    logits, taps = network.taps(torch.rand(2, 3, 32, 32))
    assert logits.shape == (2, 5)
    assert list(taps) == list(network.tap_channels) == NAMES
    assert {name: tap.shape[1] for name, tap in taps.items()} == network.tap_channels
    assert [taps[f"block{b}_conv2"].shape[1:] for b in range(1, 6)] == [
        (4, 32, 32),
        (8, 16, 16),
        (16, 8, 8),
        (32, 4, 4),
        (32, 2, 2),
    ]
    assert sum(isinstance(m, nn.Conv2d) for m in network.modules()) == 13
    wide = Vgg16(classes=43, mean=[0.0] * 3, std=[1.0] * 3)
    assert (wide.tap_channels["block1_conv1"], wide.tap_channels["block5_conv3"]) == (64, 512)


def test_the_head_reads_the_last_convolutions_means(network) -> None:
    logits, taps = network.taps(torch.rand(2, 3, 32, 32))
    pooled = taps["block5_conv3"].mean((2, 3))
    assert torch.allclose(logits, pooled @ network.pooled_head.T + network.head.bias, atol=1e-5)


def test_folding_keeps_the_answers(network) -> None:
    x, plain = torch.rand(2, 3, 32, 32), folded(network)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in plain.modules())
    assert torch.allclose(plain(x), network(x), atol=1e-4)
