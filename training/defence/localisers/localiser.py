"""A localiser: where on an image a patch is likeliest to lie, and how much that place stands out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

from torch import Tensor


class Localiser(ABC):
    """A localiser of one file of this folder; graph, manifest, attacks, card and console read what it states.

    `name` is the manifest's; `title` and `meaning` (a few words beside the picture) are what people read in its place.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    meaning: ClassVar[str]

    @abstractmethod
    def locate(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """The region of attack {0, 1} (N, H, W) of pixels (N, C, H, W) in [0, 1], and how much it stands out (N,).

        In operators that trace to plain ONNX: no gather, no scatter, no data-dependent shape.
        """

    def soft(self, pixels: Tensor) -> Tensor:
        """A stand-in for the mask (N, H, W) in [0, 1] whose gradient shows how to move it: attackers differentiate it.

        The default has no gradient. A localiser that is served should have one: else the card's adaptive patches are
        weaker than a real attacker's.
        """
        return self.locate(pixels)[0].detach()
