"""EfficientNet-Lite0 for images of 224 pixels, with the BatchNorms of the published weights folded into convolutions.

EfficientNet (Tan and Le 2019, arXiv 1905.11946) without squeeze-and-excitation and with ReLU6 in place of swish. Where
a stride is two, the padding of the published weights is uneven: the right and lower border get one row more.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from training.models.network import Network, Normalise

# Repeats, kernel, stride of the first block, expansion, and channels of each stage.
STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
STEM, FEATURES = 32, 1280
# The last stage at each resolution; the features follow.
TAPPED = {1: "stage2", 2: "stage3", 4: "stage5", 6: "stage7"}


class Convolution(nn.Module):
    """A convolution with bias, padded so that stride s gives ceil(side / s) pixels, and ReLU6 unless it is linear."""

    def __init__(
        self, inputs: int, outputs: int, kernel: int, *, stride: int = 1, groups: int = 1, linear: bool = False
    ) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(inputs, outputs, kernel, stride=stride, groups=groups)
        self.linear = linear

    def forward(self, x: Tensor) -> Tensor:
        kernel, stride = self.convolution.kernel_size[0], self.convolution.stride[0]
        missing = [max(0, (-(-side // stride) - 1) * stride + kernel - side) for side in (x.shape[3], x.shape[2])]
        x = self.convolution(F.pad(x, [part for all_of in missing for part in (all_of // 2, all_of - all_of // 2)]))
        return x if self.linear else F.relu6(x)


class InvertedResidual(nn.Module):
    """Expansion, depthwise convolution and linear projection; the input is added where shapes agree."""

    def __init__(self, inputs: int, outputs: int, kernel: int, *, stride: int, expansion: int) -> None:
        super().__init__()
        inner = inputs * expansion
        expand = [Convolution(inputs, inner, 1)] if expansion > 1 else []
        depthwise = Convolution(inner, inner, kernel, stride=stride, groups=inner)
        self.layers = nn.Sequential(*expand, depthwise, Convolution(inner, outputs, 1, linear=True))
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x) if self.residual else self.layers(x)


class EfficientNetLite0(Network):
    """EfficientNet-Lite0 of pixels (N, C, H, W) in [0, 1]; trained weights come from outside."""

    def __init__(self, *, classes: int, mean: list[float], std: list[float]) -> None:
        super().__init__()
        self.normalise = Normalise(mean, std)
        self.stem = Convolution(len(mean), STEM, 3, stride=2)
        stages, channels = [], STEM
        for repeats, kernel, stride, expansion, width in STAGES:
            blocks = []
            for number in range(repeats):
                blocks.append(
                    InvertedResidual(channels, width, kernel, stride=1 if number else stride, expansion=expansion)
                )
                channels = width
            stages.append(nn.Sequential(*blocks))
        self.stages = nn.ModuleList(stages)
        self.features = Convolution(channels, FEATURES, 1)
        self.head = nn.Linear(FEATURES, classes)

    @property
    def tap_channels(self) -> dict[str, int]:
        """Channels of the last stage at each resolution, and of the features."""
        return {name: STAGES[number][-1] for number, name in TAPPED.items()} | {"features": FEATURES}

    @property
    def pooled_head(self) -> Tensor:
        """Weight (K, 1280) of the head, which is linear in the features' spatial means."""
        return self.head.weight

    def taps(self, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Logits (N, K) and tapped activations {name: (N, C, h, w)} of pixels (N, C, H, W) in [0, 1]."""
        x = self.stem(self.normalise(x))
        activations: dict[str, Tensor] = {}
        for number, stage in enumerate(self.stages):
            x = stage(x)
            if number in TAPPED:
                activations[TAPPED[number]] = x
        activations["features"] = self.features(x)
        return self.head(activations["features"].mean((2, 3))), activations
