"""Defence graphs of networks that are not ours: PyTorch against ONNX Runtime, every output, gradient included.

Tolerance: relative to each output's largest entry, 2e-4, and a thousandth of the pixels of a binary map. Weights are
random, BatchNorm has seen noise. They take minutes: `pytest -m reference`.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from gateway.core.engine import Engine
from gateway.core.manifest import InputSpec
from training.bundling.assemble import export_defence, outputs_of
from training.defence.constants import Constants
from training.defence.graph import DefenceGraph
from training.export.fold import folded
from training.models import ModelSpec, build_model
from training.models.adapted import Adapted
from training.models.network import Network

CLASSES = 11  # as many as the images of the example that is traced
BINARY = ("roi", "roa")


class Medley(nn.Module):
    """A little of everything: overlapping pooling, a depthwise convolution, attention, dense layers behind pooling."""

    def __init__(self, num_classes: int = CLASSES) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, 1)
        )
        self.depthwise = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.BatchNorm2d(8), nn.Hardswish())
        self.down = nn.Sequential(nn.Conv2d(8, 16, 2, 2), nn.GroupNorm(2, 16), nn.GELU())
        self.attention = nn.MultiheadAttention(16, 2, batch_first=True)
        self.norm = nn.LayerNorm(16)
        self.down2 = nn.Conv2d(16, 16, 3, 2, 1)
        self.pool = nn.AdaptiveAvgPool2d(3)
        self.head = nn.Sequential(
            nn.Flatten(), nn.Linear(16 * 9, 12), nn.ReLU(inplace=True), nn.Linear(12, num_classes)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.down(self.depthwise(self.stem(x)))
        tokens = x.flatten(2).transpose(1, 2)
        tokens = self.norm(tokens + self.attention(tokens, tokens, tokens, need_weights=False)[0])
        x = self.down2(tokens.transpose(1, 2).unflatten(2, (x.shape[2], x.shape[3])))
        return self.head(self.pool(x))


def warmed(network: Network, side: int) -> Network:
    """`network` whose BatchNorm statistics are not 0 and 1, and whose head is not zero (a transformer's starts so)."""
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    for module in norms:
        module.momentum = None
        module.train()
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.ndim == 2 and not parameter.any():
                parameter.normal_(std=0.05)
        network(torch.rand(8, 3, side, side))
    return network.eval()


def constants(network: Network) -> Constants:
    channels = list(network.tap_channels.values())
    count, last = sum(channels), channels[-1]
    return Constants(
        change_mean=torch.rand(count),
        change_std=torch.rand(count) + 0.5,
        fitted={"whiten": torch.randn(last, last) / last, "class_means": torch.randn(CLASSES, last) / last},
    )


def check(network: Network, companion: Network | None, folder: Path, side: int, *, smooth: bool = True) -> None:
    """Of a network that is not `smooth` a unit at ReLU's kink may count here and not there: its gradient within 2 %."""
    network = warmed(network.eval(), side)
    alone = folded(network, side=side)
    defence = DefenceGraph(alone, companion, constants(network)).eval()
    graphs = export_defence(defence, folder, channels=3, height=side, width=side)
    engine = Engine(folder, graphs, InputSpec(height=side, width=side), threads=1)
    pixels, mask = torch.rand(3, 3, side, side), torch.zeros(3, side, side)
    mask[1, 2:8, 3:9] = 1
    expected, found = defence(pixels, mask), engine.run(pixels.numpy(), mask.numpy())
    for name in outputs_of(defence):
        wanted, given = getattr(expected, name), getattr(found, name)
        if name == "screen_scores":  # of the part `screen` alone
            continue
        error = (torch.from_numpy(given) - wanted).abs()
        if name in BINARY:
            assert error.mean() <= 1e-3, name
        else:
            tolerance = 2e-2 if name == "saliency" and not smooth else 2e-4
            assert error.max() <= tolerance * (1e-3 + wanted.abs().max()), name
    assert (found.saliency[0] - found.saliency[2]).any()  # a gradient frozen into the graph would not follow the input
    torch.testing.assert_close(alone(pixels), network(pixels), atol=1e-4, rtol=1e-3)


@pytest.mark.reference
def test_operators_beyond_ours(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network, companion = (
        Adapted(Medley(), classes=CLASSES, mean=[0.5] * 3, std=[0.25] * 3, side=24).eval() for _ in range(2)
    )
    check(network, companion, tmp_path, 24)


@pytest.mark.reference
@pytest.mark.parametrize(
    ("name", "side"),
    [
        ("resnet18", 64),
        ("resnet50", 64),
        ("vgg16", 32),
        ("mobilenet_v3_small", 64),
        ("convnext_tiny", 64),
        ("vit_b_16", 32),
    ],
)
def test_torchvisions_networks(name: str, side: int, tmp_path: Path) -> None:
    torch.manual_seed(0)
    spec = ModelSpec(arch=f"torchvision:{name}")
    network = build_model(spec, classes=CLASSES, mean=[0.5] * 3, std=[0.25] * 3, side=side)
    check(network, None, tmp_path, side, smooth=name != "resnet50")
