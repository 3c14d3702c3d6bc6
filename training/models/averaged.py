"""A network that sees its images averaged down to a lower side: a companion whose cost does not grow with the image."""

from __future__ import annotations

from torch import Tensor

from training.imaging.resize import area_average
from training.models.network import Network


class Averaged(Network):
    """`network` on images that are averaged over areas down to `side` x `side` first (`area_average`).

    Every output pixel is a mean with weights that sum to 1, so two images that differ by at most eps in every pixel
    (Linf) differ by at most eps after averaging: what `network` withstands within eps, this one withstands within eps
    at any image size. Where `side` divides the images' side the reverse holds too, as equal changes of all pixels of an
    area reach every change of their mean: the radius of adversarial training keeps its meaning in both directions.
    Images of `side` pixels pass unchanged, so training may average them once beforehand. Taps are of the lower side.
    """

    def __init__(self, network: Network, side: int) -> None:
        super().__init__()
        self.network, self.side = network, side

    @property
    def tap_channels(self) -> dict[str, int]:
        return self.network.tap_channels

    @property
    def pooled_head(self) -> Tensor | None:
        return self.network.pooled_head

    def taps(self, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        return self.network.taps(self._averaged(x))

    def forward(self, x: Tensor) -> Tensor:
        return self.network(self._averaged(x))

    def _averaged(self, x: Tensor) -> Tensor:
        return area_average(x, (self.side, self.side))
