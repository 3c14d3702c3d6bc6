"""VGG-16 (Simonyan and Zisserman 2015, arXiv 1409.1556) with batch normalisation, for images of about 32x32.

Thirteen 3x3 convolutions in five blocks, named block1_conv1 to block5_conv3, with a maximum over 2x2 between blocks.
In place of the three dense layers for images of 224 pixels stand global average pooling and one linear layer, so that
Grad-CAM at the last convolution is the class activation map.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from training.models.network import Network, Normalise

BLOCKS = ((2, 1), (2, 2), (3, 4), (3, 8), (3, 8))  # convolutions, and width as a multiple of the first block's


class Vgg16(Network):
    """VGG-16 with batch normalisation; `width` is the first block's (64 in the paper).

    `taps` returns every convolution's output after normalisation and ReLU, by name. Images need 16 pixels a side.
    """

    def __init__(self, *, classes: int, width: int = 64, mean: list[float], std: list[float]) -> None:
        super().__init__()
        self.normalise = Normalise(mean, std)
        self.convolutions = nn.ModuleDict()
        channels = len(mean)
        for block, (count, multiple) in enumerate(BLOCKS, start=1):
            for number in range(1, count + 1):
                outputs = width * multiple
                self.convolutions[f"block{block}_conv{number}"] = nn.Sequential(
                    nn.Conv2d(channels, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()
                )
                channels = outputs
        self.head = nn.Linear(channels, classes)

    @property
    def tap_channels(self) -> dict[str, int]:
        """Channels of each convolution, in order."""
        channels = {}
        for name, layer in self.convolutions.items():
            assert isinstance(layer, nn.Sequential)
            assert isinstance(layer[0], nn.Conv2d)
            channels[name] = layer[0].out_channels
        return channels

    @property
    def pooled_head(self) -> Tensor:
        """Weight (K, C) of the head, which is linear in the last convolution's spatial means."""
        return self.head.weight

    def taps(self, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Logits (N, K) and every convolution's output {name: (N, C, H, W)} of pixels (N, C, H, W) in [0, 1]."""
        x = self.normalise(x)
        activations: dict[str, Tensor] = {}
        for name, layer in self.convolutions.items():
            if activations and name.endswith("conv1"):
                x = F.max_pool2d(x, 2)
            x = layer(x)
            activations[name] = x
        return self.head(x.mean((2, 3))), activations
