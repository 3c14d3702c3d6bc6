from __future__ import annotations

import pytest
import torch

from training.models import ARCHS, ModelSpec, build_model
from training.models.efficientnet_lite import FEATURES, Convolution, EfficientNetLite0


@pytest.fixture(scope="module")
def network() -> EfficientNetLite0:
    torch.manual_seed(0)
    made = build_model(ModelSpec(arch="efficientnet_lite0"), classes=7, mean=[0.5] * 3, std=[0.5] * 3, side=64)
    assert isinstance(made, EfficientNetLite0)
    return made.eval()


def test_it_is_the_published_size() -> None:
    """4,652,008 parameters with 1,000 classes (the published network's), less what BatchNorm and folding differ in."""
    network = EfficientNetLite0(classes=1000, mean=[0.5] * 3, std=[0.5] * 3)
    biases = sum(p.numel() for name, p in network.named_parameters() if name.endswith("convolution.bias"))
    assert sum(p.numel() for p in network.parameters()) == 4_652_008 - biases
    assert "efficientnet_lite0" in ARCHS


def test_taps_fall_in_resolution_and_are_named(network: EfficientNetLite0) -> None:
    logits, taps = network.taps(torch.rand(2, 3, 64, 64))
    assert logits.shape == (2, 7)
    assert {name: tap.shape[1] for name, tap in taps.items()} == network.tap_channels
    assert [tap.shape[2] for tap in taps.values()] == [16, 8, 4, 2, 2]
    torch.testing.assert_close(
        taps["features"].mean((2, 3)) @ network.pooled_head.T + network.head.bias, logits, rtol=1e-4, atol=1e-5
    )
    assert list(taps)[-1] == "features"
    assert taps["features"].shape[1] == FEATURES


@pytest.mark.parametrize(
    ("kernel", "stride", "side", "before"), [(3, 2, 8, 0), (5, 2, 8, 1), (3, 1, 8, 1), (3, 2, 7, 1)]
)
def test_padding_is_that_of_the_published_weights(kernel: int, stride: int, side: int, before: int) -> None:
    """ "SAME" of TensorFlow: ceil(side / stride) pixels, and the uneven row at the right and lower border."""
    layer = Convolution(1, 1, kernel, stride=stride, linear=True)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.zero_()
        layer.convolution.weight[0, 0, before, before] = 1.0  # reads the first pixel of the image at the first place
        x = torch.arange(side * side, dtype=torch.float32).view(1, 1, side, side) + 1
        y = layer(x)
    assert y.shape[2:] == (-(-side // stride),) * 2
    assert y[0, 0, 0, 0] == 1
