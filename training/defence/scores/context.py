"""What a detector score may read of a batch, and what it may read of benign images to fit its constants."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor

from training.defence.localisers import LOCALISER, localiser_named
from training.defence.localisers.localiser import Localiser
from training.defence.localisers.texture_colour import median_3x3
from training.defence.signals.deviation import normalised, top_mean, view_change
from training.defence.signals.margins import served_one_hot
from training.defence.signals.views import SHIFTS, reference_views
from training.imaging.inpaint import inpaint
from training.models.network import Network

Taps = dict[str, Tensor]


class Answers(Protocol):
    """The answering network's logits of N images and of their variants; K classes, V reference views."""

    @property
    def logits(self) -> Tensor:
        """(N, K)."""

    @property
    def label(self) -> Tensor:
        """The served label, one-hot (N, K)."""

    @property
    def view_logits(self) -> Tensor:
        """(V N, K) of the reference views, view-major."""

    @property
    def view_labels(self) -> Tensor:
        """The served label (V N, K) beside `view_logits`."""

    @property
    def filtered_logits(self) -> Tensor:
        """(N, K) of the images through a 3 x 3 median."""

    @property
    def hidden_logits(self) -> Tensor:
        """(N, K) of the images with their region of attack inpainted."""


@dataclass(frozen=True)
class ScoreContext:
    """A batch of N images as the defence sees it; K classes, L tapped layers, C channels of all of them together.

    Everything is differentiable in `x`, as attacks want it, except for `label`. What takes the views is computed when a
    score first reads it, and once for all scores.
    """

    network: Network
    companion: Network | None
    x: Tensor  # (N, channels, H, W) in [0, 1], the inpainted pixels
    logits: Tensor  # (N, K)
    taps: Taps  # by layer, (N, channels, h, w)
    companion_logits: Tensor | None  # (N, K)
    change_mean: Tensor  # (C,) benign mean of the neurons' change under the views
    change_std: Tensor  # (C,)
    constants: Mapping[str, Tensor]  # what scores fitted for themselves (`Score.fit`)
    localiser: Localiser = localiser_named(LOCALISER)

    @cached_property
    def label(self) -> Tensor:
        """The served label, one-hot (N, K)."""
        return served_one_hot(self.logits.detach())

    @property
    def layers(self) -> Sequence[str]:
        """Names of the tapped layers, first to last."""
        return list(self.taps)

    @cached_property
    def features(self) -> Tensor:
        """Spatial means (N, F) of the last tapped layer."""
        return self.taps[self.layers[-1]].mean((2, 3))

    @property
    def view_logits(self) -> Tensor:
        """Logits (V N, K) of the V reference views, view-major."""
        return self._views[0]

    @cached_property
    def region(self) -> tuple[Tensor, Tensor]:
        """The region of attack (N, H, W) and by how much it stands out (N,)."""
        return self.localiser.locate(self.x)

    @cached_property
    def filtered_logits(self) -> Tensor:
        """Logits (N, K) of the images through a 3 x 3 median."""
        return self.network(median_3x3(self.x))

    @cached_property
    def hidden_logits(self) -> Tensor:
        """Logits (N, K) of the images with their region of attack inpainted."""
        return self.network(inpaint(self.x, self.region[0]))

    @property
    def view_taps(self) -> Taps:
        """Taps of the reference views by layer, (V N, channels, h, w), view-major."""
        return self._views[1]

    @property
    def view_labels(self) -> Tensor:
        """The served label (V N, K) beside `view_logits`."""
        return self.label.repeat(len(SHIFTS), 1)

    @cached_property
    def change(self) -> Tensor:
        """z-scores (N, C) of every neuron's change under the views, layer after layer."""
        change = torch.cat([view_change(self.taps[name], self.view_taps[name]) for name in self.layers], 1)
        return normalised(change, self.change_mean, self.change_std)

    @cached_property
    def deviation(self) -> Tensor:
        """Deviation by layer (N, L): mean of the top z-scores of its neurons (`top_mean`)."""
        parts = self.change.split([self.taps[name].shape[1] for name in self.layers], 1)
        return torch.stack([top_mean(part) for part in parts], 1)

    @cached_property
    def _views(self) -> tuple[Tensor, Taps]:
        return self.network.taps(reference_views(self.x))


@dataclass(frozen=True)
class BenignFeatures:
    """Benign images as a score may fit its constants on them: spatial means of the last tapped layer.

    `fit` (N, F) of training images with labels `fit_y` (N,); `held_out` (M, F) of images that no network was trained
    on, with `held_out_y` (M,). Where there are no training images both are the held-out ones (`same`). Neither holds an
    image of the calibrate split.
    """

    layer: str
    classes: int
    fit: Tensor
    fit_y: Tensor
    held_out: Tensor
    held_out_y: Tensor
    same: bool = False
