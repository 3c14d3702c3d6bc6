"""Networks of other people's making: which layers are tapped, and that tapping changes nothing."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import VisionTransformer

from training.errors import TrainingError
from training.models.adapted import Adapted
from training.models.layers import tapped_layers
from training.models.probe import as_map


class Stages(nn.Module):
    """Three resolutions, with a block of two convolutions in the second."""

    def __init__(self, num_classes: int = 5) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.BatchNorm2d(4), nn.ReLU(inplace=True))
        self.middle = nn.Sequential(nn.Conv2d(4, 6, 3, 2, 1), nn.ReLU(), nn.Conv2d(6, 6, 3, 1, 1), nn.ReLU())
        self.late = nn.Sequential(nn.Conv2d(6, 8, 3, 2, 1), nn.ReLU(inplace=True))
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(8, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.pool(self.late(self.middle(self.stem(x)))).flatten(1))


class Tokens(nn.Module):
    """Six blocks on patches of 4 x 4, and a class token whose last state is read."""

    def __init__(self, num_classes: int = 5, width: int = 8) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, 4, 4)
        self.token = nn.Parameter(torch.randn(1, 1, width))
        self.blocks = nn.ModuleList([nn.TransformerEncoderLayer(width, 2, 16, 0.0, batch_first=True) for _ in range(6)])
        self.head = nn.Linear(width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patches(x).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.token.expand(len(x), -1, -1), tokens], 1)
        for block in self.blocks:
            tokens = block(tokens)
        return self.head(tokens[:, 0])


def adapted(body: nn.Module, side: int = 16) -> Adapted:
    torch.manual_seed(0)
    return Adapted(body, classes=5, mean=[0.5] * 3, std=[0.2] * 3, side=side).eval()


def test_the_last_module_at_each_resolution_is_tapped() -> None:
    network, x = adapted(Stages()), torch.rand(2, 3, 16, 16)
    logits, taps = network.taps(x)
    assert network.tap_channels == {"stem": 4, "middle": 6, "late": 8}
    assert {name: tuple(tap.shape[1:]) for name, tap in taps.items()} == {
        "stem": (4, 8, 8),
        "middle": (6, 4, 4),
        "late": (8, 2, 2),
    }
    normalised = (x - 0.5) / 0.2
    assert torch.equal(
        taps["middle"], network.get_submodule("body.middle")(network.get_submodule("body.stem")(normalised))
    )
    assert torch.equal(logits, network.body(normalised))
    assert torch.equal(logits, network(x))
    assert not any(module._forward_hooks for module in network.modules())


def test_tokens_become_maps_that_the_answer_depends_on() -> None:
    network, x = adapted(Tokens()), torch.rand(2, 3, 16, 16)
    logits, taps = network.taps(x)
    assert list(taps) == ["blocks.0", "blocks.1", "blocks.3", "blocks.4"]  # the last one's patches reach no answer
    assert all(tap.shape == (2, 8, 4, 4) for tap in taps.values())
    torch.testing.assert_close(logits, network(x))
    (gradient,) = torch.autograd.grad(logits.sum(), taps["blocks.4"])
    assert gradient.abs().sum() > 0


def found(output: Tensor) -> Tensor:
    made = as_map(output)
    assert made is not None
    return made


def test_maps() -> None:
    image, channels_last = torch.rand(2, 6, 4, 4), torch.rand(2, 4, 4, 6)
    assert as_map(image) is image
    assert torch.equal(found(channels_last)[0, 5], channels_last[0, :, :, 5])
    tokens = torch.rand(2, 10, 6)
    assert torch.equal(found(tokens)[1, 2], tokens[1, 1:, 2].reshape(3, 3))
    assert torch.equal(found(tokens[:, 1:]), found(tokens))
    for other in (torch.rand(2, 12, 6), torch.rand(2, 6), image.long(), (image, image)):
        assert as_map(other) is None


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (Stages(num_classes=4), r"answers two images with \(2, 4\), not with logits \(2, 5\)"),
        (nn.Sequential(nn.Flatten(), nn.Linear(99, 5)), "cannot take images of 3 x 16 x 16"),
        (nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 5)), "no layer whose output is a map"),
    ],
)
def test_a_network_that_does_not_fit_is_told(body: nn.Module, message: str) -> None:
    with pytest.raises(TrainingError, match=message):
        tapped_layers(body, classes=5, channels=3, side=16)


def test_a_list_inside_a_block_is_not_taken_for_the_blocks() -> None:
    """A shallow transformer of torchvision: its blocks' perceptrons are lists of more modules than it has blocks."""
    body = VisionTransformer(16, 4, 3, 2, 8, 16, num_classes=5)
    found = tapped_layers(body, classes=5, channels=3, side=16)
    assert list(found) == [f"encoder.layers.encoder_layer_{i}" for i in range(2)]  # the last has a class token
