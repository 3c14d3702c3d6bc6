"""A small residual network (He et al. 2015, arXiv 1512.03385) for images of about 32x32 on a CPU."""

from __future__ import annotations

from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn

from training.models.network import Network, Normalise


class Block(nn.Module):
    """Two 3x3 convolutions with batch normalisation and a (projected) shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(out + self.shortcut(x))


class SmallResNet(Network):
    """Stem, stages that halve the side and double the width, global average pooling, linear head.

    `taps` returns the post-activation outputs of the stem and of every stage by name: the layers whose neurons
    (channels) are measured and monitored.
    """

    def __init__(
        self,
        *,
        classes: int,
        width: int = 32,
        blocks: tuple[int, ...] = (1, 1, 1),
        stem_stride: int = 1,
        mean: list[float],
        std: list[float],
    ) -> None:
        super().__init__()
        self.normalise = Normalise(mean, std)
        widths = [width * 2**i for i in range(len(blocks))]
        stem = nn.Conv2d(len(mean), width, 3, stride=stem_stride, padding=1, bias=False)
        self.stem = nn.Sequential(stem, nn.BatchNorm2d(width), nn.ReLU())
        self.stages = nn.ModuleList()
        for stage, (inputs, outputs) in enumerate(pairwise([width, *widths])):
            first = Block(inputs, outputs, 1 if stage == 0 else 2)
            self.stages.append(nn.Sequential(first, *(Block(outputs, outputs, 1) for _ in range(blocks[stage] - 1))))
        self.head = nn.Linear(widths[-1], classes)

    @property
    def tap_channels(self) -> dict[str, int]:
        """Channels of each tapped layer, in order."""
        stem = self.stem[0]
        assert isinstance(stem, nn.Conv2d)
        return {"stem": stem.out_channels} | {f"stage{i + 1}": _width(stage) for i, stage in enumerate(self.stages)}

    def taps(self, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Logits (N, K) and tapped activations {name: (N, C, H, W)} of pixels (N, C, H, W) in [0, 1]."""
        x = self.stem(self.normalise(x))
        activations = {"stem": x}
        for i, stage in enumerate(self.stages):
            x = stage(x)
            activations[f"stage{i + 1}"] = x
        return self.head(x.mean((2, 3))), activations

    @property
    def pooled_head(self) -> Tensor:
        """Weight (K, C) of the head, which is linear in the last stage's spatial means."""
        return self.head.weight


def _width(stage: nn.Module) -> int:
    assert isinstance(stage, nn.Sequential)
    last = stage[-1]
    assert isinstance(last, Block)
    return last.conv2.out_channels
