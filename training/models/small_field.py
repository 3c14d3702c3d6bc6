"""A network of a small receptive field: its logits are means over cells that see a few pixels each.

After BagNets (Brendel and Bethge 2019, arXiv 1904.00760), with most layers inside the field, and a learned constant
for each place, which no patch changes. What it proves: `gateway.core.small_field`.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gateway.core.small_field import SmallFieldSpec, Windows
from training.models.network import Network, Normalise

_SCALE = 8.0
"""Of logits: means over cells that are mostly silent are small, which slows training down."""


class SmallField(Network):
    """Convolutions of 3x3, 2x2 with stride 2, and 2x2, each before one of 1x1; a field of 6x6 pixels, stride 2."""

    def __init__(
        self,
        *,
        classes: int,
        width: int,
        side: int,
        mean: list[float],
        std: list[float],
        logarithm: float | None = None,
    ) -> None:
        """With `logarithm` c, pixels x enter as log(1 + x / c) / log(1 + 1 / c), still in [0, 1]."""
        super().__init__()
        self.logarithm = logarithm
        self.normalise = Normalise(mean, std)
        first, *others = (width * part // 4 for part in (3, 4, 7, 8, 10, 14))
        one, two, three, four, five = others
        self.stem = nn.Sequential(
            *_layer(len(mean), first, 3, padding=1), *_layer(first, one, 1), *_layer(one, two, 2, stride=2)
        )
        self.place = nn.Parameter(torch.zeros(1, two, side // 2, side // 2))
        self.body = nn.Sequential(*_layer(two, three, 1), *_layer(three, four, 2), *_layer(four, five, 1))
        self.head = nn.Conv2d(five, classes, 1)

    @property
    def spec(self) -> SmallFieldSpec:
        """Where the cells' fields lie."""
        height, width = (size - 1 for size in self.place.shape[2:])
        return SmallFieldSpec(field=6, stride=2, first=-1, height=height, width=width)

    @property
    def tap_channels(self) -> dict[str, int]:
        return {"body": self.head.in_channels}

    def taps(self, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        features = self._features(x)
        return _SCALE * self.head(features).mean((2, 3)), {"body": features}

    def cells(self, x: Tensor) -> Tensor:
        """Evidence (N, K, h, w) whose sum over the cells is the logits, of pixels (N, C, H, W) in [0, 1]."""
        found = self.head(self._features(x))
        return found * (_SCALE / (found.shape[2] * found.shape[3]))

    def _features(self, x: Tensor) -> Tensor:
        if self.logarithm is not None:
            x = torch.log1p(x / self.logarithm) / math.log1p(1 / self.logarithm)
        features: Tensor = self.body(self.stem(self.normalise(x)) + self.place)
        return features


def without_worst_windows(cells: Tensor, y: Tensor, windows: Tensor) -> Tensor:
    """Logits (N, K) of evidence (N, K, h, w) without the greedily worst two of `windows` (cells, Q) for labels `y`."""
    flat = cells.flatten(2)
    with torch.no_grad():
        kept = torch.ones_like(flat[:, 0])
        for _ in range(2):
            left = flat * kept[:, None]
            logits = left.sum(2)[..., None] - left @ windows
            own = F.one_hot(y, logits.shape[1])[..., None].bool()
            lead = logits.masked_fill(~own, -torch.inf).amax(1) - logits.masked_fill(own, -torch.inf).amax(1)
            kept = kept * (1 - windows.T[lead.argmin(1)])
    return (flat * kept[:, None]).sum(2)


def as_tensor(windows: Windows, like: Tensor) -> Tensor:
    """The windows (cells, Q), where `like` is."""
    return torch.from_numpy(windows.windows).to(like)


def _layer(inputs: int, outputs: int, kernel: int, *, stride: int = 1, padding: int = 0) -> tuple[nn.Module, ...]:
    convolution = nn.Conv2d(inputs, outputs, kernel, stride=stride, padding=padding, bias=False)
    return convolution, nn.BatchNorm2d(outputs), nn.ReLU()
