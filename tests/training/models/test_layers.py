"""Which layers of a network are maps of the batch: no weight, no table, no window, nothing that repeats another."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import spectral_norm, weight_norm
from torchvision import models

from training.errors import TrainingError
from training.export.fold import folded
from training.models.adapted import Adapted
from training.models.forms import architecture
from training.models.layers import tapped_layers

SIDE = 16


class Halved(nn.Module):
    """A user's parametrisation, whose output is of a convolution's square shape."""

    def forward(self, weight: Tensor) -> Tensor:
        return weight / 2


def halved(layer: nn.Module) -> nn.Module:
    return parametrize.register_parametrization(layer, "weight", Halved())


def old_weight_norm(layer: nn.Module) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return nn.utils.weight_norm(layer)


def three(f=lambda layer: layer, *, extra: nn.Module | None = None, classes: int = 5) -> nn.Sequential:
    """Blocks at three resolutions, of `f`(convolution); `extra` after the second."""

    def block(ins: int, outs: int, stride: int = 1) -> nn.Sequential:
        return nn.Sequential(f(nn.Conv2d(ins, outs, 3, stride, 1)), nn.ReLU(inplace=True))

    middle = [block(8, 8, 2)] + ([] if extra is None else [extra])
    return nn.Sequential(
        block(3, 8), *middle, block(8, 16, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, classes)
    )


def weight_normed(num_classes: int) -> nn.Module:
    return three(weight_norm, classes=num_classes)


def spectrally_normed(num_classes: int) -> nn.Module:
    return three(spectral_norm, classes=num_classes)


class Inverse(nn.Module):
    """Whitens the features with an inverse, for which ONNX has no operator."""

    def forward(self, x: Tensor) -> Tensor:
        features = x.flatten(2)
        spread = features @ features.mT + torch.eye(x.shape[1])
        return (torch.linalg.inv(spread) @ features).reshape(x.shape)


def inverting(num_classes: int) -> nn.Module:
    return three(extra=Inverse(), classes=num_classes)


def adapted(body: nn.Module, side: int = SIDE) -> Adapted:
    return Adapted(body, classes=5, mean=[0.5] * 3, std=[0.2] * 3, side=side).eval()


@pytest.mark.parametrize("f", [weight_norm, spectral_norm, halved, old_weight_norm, nn.utils.spectral_norm])
def test_no_weight_is_a_layer_and_parametrisations_are_folded(f) -> None:
    torch.manual_seed(0)
    network, x = adapted(three(f)), torch.rand(2, 3, SIDE, SIDE)
    assert network.tap_channels == {"0": 8, "1": 8, "2": 16}
    before, names = network(x), set(network.state_dict())
    made = folded(network, side=SIDE)
    torch.testing.assert_close(made(x), before)
    assert set(made.state_dict()) == set(adapted(three()).state_dict())
    assert set(network.state_dict()) == names
    torch.testing.assert_close(network(x), before)  # the network itself is whole
    torch.testing.assert_close(copy.deepcopy(made)(x), before)


@pytest.mark.parametrize(
    "extra",
    [
        nn.Dropout(0.5),
        nn.Identity(),
        nn.ZeroPad2d(1),
        nn.ReflectionPad2d((1, 0, 1, 0)),
        nn.ConstantPad2d(1, -3.0),
        nn.ChannelShuffle(2),
    ],
)
def test_what_repeats_another_layer_is_none(extra: nn.Module) -> None:
    found = tapped_layers(three(extra=extra), classes=5, channels=3, side=32)
    assert found == {"0": 8, "1": 8, "3": 16}


class Tables(nn.Module):
    """Modules that give a table of positions, one row or one for each image, and windows of the images."""

    def __init__(self) -> None:
        super().__init__()
        self.body = three()
        self.table, self.expanded, self.windows = nn.Conv2d(1, 2, 1), nn.Conv2d(1, 2, 1), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        positions = torch.ones(1, 1, 20, 20)
        mine = positions[:, :, :12, :12].expand(len(x), -1, -1, -1)
        table = self.table(positions).mean() + self.expanded(mine).mean()
        side = x.shape[2] // 2
        windows = x.unflatten(3, (2, side)).unflatten(2, (2, side)).permute(0, 2, 4, 1, 3, 5).flatten(0, 2)
        return self.body(x) + table + self.windows(windows).mean()


def test_tables_and_windows_are_no_layers() -> None:
    found = tapped_layers(Tables(), classes=5, channels=3, side=SIDE)
    assert found == {"body.0": 8, "body.1": 8, "body.2": 16}


class Mixed(nn.Module):
    """A module that gives its batch a common row, and one that gives a tuple."""

    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        self.part, self.body = part, three()

    def forward(self, x: Tensor) -> Tensor:
        made = self.part(x)
        return self.body(x) + (made[0] if isinstance(made, tuple) else made).mean()


class Common(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return (2 * x.mean(0, keepdim=True)).expand_as(x)[:, :, :10, :10]


class Pair(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x[:, :, :10, :10] * 2, x


class Shifted(nn.Module):
    """Each image's row is made of its neighbour."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([x[0], 2 * x[0]])[:, :, :10, :10] if len(x) == 2 else x


@pytest.mark.parametrize("part", [Common(), Pair(), Shifted()])
def test_a_layer_follows_the_order_of_the_batch(part: nn.Module) -> None:
    assert list(tapped_layers(Mixed(part), classes=5, channels=3, side=SIDE)) == ["body.0", "body.1", "body.2"]


class SequenceFirst(nn.Module):
    """A transformer whose tokens come before the batch: no layer has the batch first."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Linear(3 * 16, 8)
        self.blocks = nn.ModuleList([nn.TransformerEncoderLayer(8, 2, 16, 0.0) for _ in range(3)])
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patch(nn.functional.unfold(x, 4, stride=4).permute(2, 0, 1))
        for block in self.blocks:
            tokens = block(tokens)
        return self.head(tokens.mean(0))


def test_a_network_without_layers_is_told_the_way_out() -> None:
    with pytest.raises(TrainingError, match=r"no layer whose output is a map.*the batch as its first axis") as told:
        adapted(SequenceFirst())
    assert "\n" not in str(told.value)


class Written(nn.Module):
    """The residual sum is written into the output of a convolution: that is no longer what the convolution gave."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.inner = nn.Conv2d(3, 8, 3, 1, 1), nn.Conv2d(8, 8, 3, 1, 1)
        self.tail = three()[1:]

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        made = self.inner(x)
        made += x
        return self.tail(made)


def test_a_tensor_that_is_written_to_afterwards_is_no_layer() -> None:
    assert list(tapped_layers(Written(), classes=5, channels=3, side=SIDE)) == ["stem", "tail.1", "tail.2"]


def test_swin_gives_its_stages() -> None:
    """At 64 pixels; its bias tables have a batch of one, and its last permutation repeats the norm before it."""
    network = adapted(models.SwinTransformer([4, 4], 8, [1, 1, 2], [2, 2, 2], [4, 4], num_classes=5), side=64)
    x = torch.rand(3, 3, 64, 64)
    with torch.no_grad():
        taps = network.taps(x)[1]
    assert {name: tuple(tap.shape) for name, tap in taps.items()} == {
        "features.1": (3, 8, 16, 16),
        "features.3": (3, 16, 8, 8),
        "norm": (3, 32, 4, 4),
    }


def test_a_layer_that_gives_no_map_of_other_images_is_told() -> None:
    body = three()
    network = adapted(body)
    body[1] = nn.Flatten()
    with pytest.raises(TrainingError, match=r"the layer 1 gave \(2, 2048\) for 2 images of 16 x 16"):
        network.taps(torch.rand(2, 3, SIDE, SIDE))


NETWORKS = {
    "torchvision:resnet18": ["relu", "layer1", "layer2", "layer3", "layer4"],
    "torchvision:resnet50": ["relu", "layer1", "layer2", "layer3", "layer4"],
    "torchvision:vgg16": ["features.8", "features.15", "features.22", "features.29", "features"],
    "torchvision:mobilenet_v3_large": ["features.1", "features.3", "features.6", "features.12", "features"],
    "torchvision:efficientnet_b0": ["features.1", "features.2", "features.3", "features.5", "features"],
    "torchvision:convnext_tiny": ["features.1", "features.3", "features.5", "features"],
    "torchvision:vit_b_16": [f"encoder.layers.encoder_layer_{i}" for i in (2, 5, 7, 10)],
    "torchvision:swin_t": ["features.1", "features.3", "features.5", "norm"],
    "torchvision:swin_v2_t": ["features.1", "features.3", "features.5", "norm"],
    "timm:deit_tiny_patch16_224": [f"blocks.{i}" for i in (2, 5, 7, 10)],
    "timm:swin_tiny_patch4_window7_224": ["layers.0", "layers.1", "layers.2", "norm"],
    "timm:efficientnet_lite0": ["blocks.0", "blocks.1", "blocks.2", "blocks.4", "bn2"],
    "efficientnet_lite_pytorch": ["_blocks.0", "_blocks.2", "_blocks.4", "_blocks.10", "_bn1"],
}


@pytest.mark.reference
@pytest.mark.parametrize("name", NETWORKS)
def test_layers_of_real_networks(name: str) -> None:
    """At 224 pixels, spread over the depth: no bias table, dropout, padding or attention among them."""
    if name == "efficientnet_lite_pytorch":
        body = pytest.importorskip(name).EfficientNet.from_name("efficientnet-lite0")
    else:
        if name.startswith("timm:"):
            pytest.importorskip("timm")
        body = architecture(name, classes=1000, side=224)
    assert list(tapped_layers(body.eval(), classes=1000, channels=3, side=224)) == NETWORKS[name]
