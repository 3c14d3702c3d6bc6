"""The interface of networks: pixels in [0, 1] in, logits out, and the activations of named layers on demand."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn


class Normalise(nn.Module):
    """(x - mean) / std by channel, so that everything outside the network uses pixels in [0, 1] and RGB.

    `reverse` gives the network BGR; `mean` and `std` are in its order, of pixels in [0, 1].
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: list[float], std: list[float], *, reverse: bool = False) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1))
        self.reverse = reverse

    def forward(self, x: Tensor) -> Tensor:
        return ((x.flip(1) if self.reverse else x) - self.mean) / self.std


class Network(nn.Module, ABC):
    """A classifier of images (N, C, H, W) in [0, 1]; it normalises inside.

    Tapped layers are those whose neurons (channels) are measured and monitored, in order from input to output: the one
    in the middle localises attacks, the last one gives the features that distances are taken of.
    """

    @property
    @abstractmethod
    def tap_channels(self) -> dict[str, int]:
        """Channels of each tapped layer, in order."""

    @abstractmethod
    def taps(self, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Logits (N, K) and tapped activations {name: (N, C, h, w)} of pixels (N, C, H, W) in [0, 1]."""

    @property
    def pooled_head(self) -> Tensor | None:
        """Weight (K, C) of the head where it is linear in the last tap's spatial means, else None."""
        return None

    def forward(self, x: Tensor) -> Tensor:
        return self.taps(x)[0]
