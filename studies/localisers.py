"""Where on an image a patch may lie: pixel maps, square windows of several sides, and both networks' answers.

A pixel map shows how unusual every pixel is; a window is as suspect as its pixels stand out from the rest of the image
(`windows.contrasts`), whatever its side. The best windows that hardly overlap are candidates (`candidates`); hiding
each of them and asking both networks again shows which one to believe (`agreement`, `averaged`).

Localisers by pixel maps have the interface of the served one (`training.defence.localisers`): a candidate that is to be
served moves there as it is.

Sides are shares of the image's, and maps are standardised by image; images of 96 pixels and more, whose windows are of
cells, are not compared here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

import torch
import torch.nn.functional as F
from torch import Tensor

from training.defence.localisers.texture_colour import colourfulness, scaled_texture
from training.defence.localisers.windows import (
    WindowLocaliser,
    contrasts,
    in_cells,
    together,
    window_places,
    window_sides,
)
from training.imaging.inpaint import inpaint
from training.imaging.resize import box_mean, resize_bilinear

ENTROPY_SHARE = 0.16
LEVELS = 16
OVERLAP = 0.3


@dataclass(frozen=True)
class Windows:
    """K square windows on each of N images: upper left corners and sides in pixels (N, K), and scores (N, K)."""

    top: Tensor
    left: Tensor
    side: Tensor
    score: Tensor

    def masks(self, size: tuple[int, int]) -> Tensor:
        """{0, 1} float (N, K, H, W): where the windows lie on images of `size`."""
        rows, columns = (
            ((steps >= start[..., None]) & (steps < (start + self.side)[..., None]))
            for start, steps in zip(
                (self.top, self.left), (torch.arange(s, device=self.top.device) for s in size), strict=True
            )
        )
        return (rows[..., :, None] & columns[..., None, :]).to(self.score.dtype)

    def take(self, columns: Tensor) -> Windows:
        """Of image i the windows `columns[i]` (N, M)."""
        return Windows(*(getattr(self, f.name).gather(1, columns) for f in fields(self)))

    def first(self, count: int) -> Windows:
        """Every image's first `count` windows."""
        return Windows(*(getattr(self, f.name)[:, :count] for f in fields(self)))

    @classmethod
    def joined(cls, lists: Sequence[Windows]) -> Windows:
        """The windows of several lists on the same images, one list after the other."""
        return cls(*(torch.cat([getattr(each, f.name) for each in lists], 1) for f in fields(cls)))


def feature_norm(features: Tensor, size: tuple[int, int]) -> Tensor:
    """Norm over channels of features (N, C, h, w), resized to (N, H, W)."""
    return resize_bilinear((features.pow(2).sum(1, keepdim=True) + 1e-12).sqrt(), size)[:, 0]


def local_entropy(pixels: Tensor, *, share: float = ENTROPY_SHARE, levels: int = LEVELS) -> Tensor:
    """Entropy in bits (N, H, W) of the grey levels in a square around every pixel (Tarchoun et al. 2023).

    "Jedi" (arXiv 2304.10029) finds patches as regions of high entropy. Its windows and thresholds belong to images of
    224 pixels; here the square's side is a `share` of the image's, made odd, its histogram has `levels` bins, and what
    counts as high is decided by contrast within the image. Squares are cut off at the border.
    """
    grey = pixels.mean(1, keepdim=True)
    bins = (grey * levels).long().clamp(0, levels - 1)
    side = max(3, round(share * min(pixels.shape[2:]))) // 2 * 2 + 1
    half = side // 2
    found = torch.zeros_like(grey)
    inside = box_mean(F.pad(torch.ones_like(grey), (half,) * 4), side)
    for level in range(levels):
        part = box_mean(F.pad((bins == level).to(grey.dtype), (half,) * 4), side) / inside
        found -= part * part.clamp_min(1e-12).log2()
    return found[:, 0]


class Entropy(WindowLocaliser):
    """The window of the highest local entropy."""

    name = "entropy"
    title = "Entropy"
    meaning = "the window of the most varied grey levels"

    def pixel_map(self, pixels: Tensor) -> Tensor:
        return local_entropy(pixels)


class TextureColourEntropy(WindowLocaliser):
    """What is served, and entropy."""

    name = "texture_colour_entropy"
    title = "Texture, colour and entropy"
    meaning = "the window that stands out most in texture, colours and entropy"

    def pixel_map(self, pixels: Tensor) -> Tensor:
        size, maps = (pixels.shape[2], pixels.shape[3]), (colourfulness(pixels), local_entropy(pixels))
        return together(scaled_texture(pixels), *(in_cells(each, size) for each in maps))


class UsualSide(WindowLocaliser):
    """A localiser's windows of one side alone, a `share` of the image's."""

    name = "one_side"
    title = "One side"
    meaning = "the window that stands out most among those of one side"

    def __init__(self, inner: WindowLocaliser, share: float) -> None:
        self.inner, self.share = inner, share

    def pixel_map(self, pixels: Tensor) -> Tensor:
        return self.inner.pixel_map(pixels)

    def window_scores(self, pixels: Tensor) -> dict[int, Tensor]:
        """Those of windows of that side."""
        cells = in_cells(self.pixel_map(pixels), (pixels.shape[2], pixels.shape[3]))
        return contrasts(cells, window_sides(*cells.shape[1:], shares=(self.share,)))


def energy_and_features(pixels: Tensor, features: Tensor, sides: Sequence[int]) -> dict[int, Tensor]:
    """Standardised means over every window of high-pass energy and of the feature norm, summed, by side.

    pixels (N, C, H, W), features (N, c, h, w) of a middle layer; each score (N, H - side + 1, W - side + 1). What was
    served up to gtsrb 1.3.0.
    """
    energy = (pixels - box_mean(F.pad(pixels, (1, 1, 1, 1), mode="replicate"), 3)).pow(2).sum(1)
    maps = torch.stack([energy, feature_norm(features, (pixels.shape[2], pixels.shape[3]))], 1)
    return {side: together(*box_mean(maps, side).unbind(1)) for side in sides}


def candidates(scores: Mapping[int, Tensor], count: int, *, overlap: float = OVERLAP) -> Windows:
    """The `count` windows of highest score, best first, none much over another.

    `scores` are by side, (N, H - side + 1, W - side + 1). Greedy non-maximum suppression over places and sides:
    intersection over union with every window chosen before is at most `overlap`. Where an image has no further window
    the first one is repeated.
    """
    places = window_places(scores)
    score = torch.cat([each.flatten(1) for each in scores.values()], 1)
    open_ = score.clone()
    chosen: list[Tensor] = []
    for _ in range(count):
        best = open_.argmax(1, keepdim=True)
        if chosen:
            best = torch.where(open_.gather(1, best).isinf(), chosen[0], best)
        chosen.append(best)
        open_ = open_.masked_fill(_union_share(places, best) > overlap, -torch.inf)
    index = torch.cat(chosen, 1)
    top, left, side = places
    return Windows(top[index], left[index], side[index], score.gather(1, index))


def hidden(pixels: Tensor, windows: Windows) -> Tensor:
    """The images (N, C, H, W) with each of their K windows inpainted: (N * K, C, H, W), an image's windows together."""
    masks = windows.masks((pixels.shape[2], pixels.shape[3]))
    return inpaint(pixels.repeat_interleave(masks.shape[1], 0), masks.flatten(0, 1))


def agreement(logits: Tensor, companion_logits: Tensor) -> Tensor:
    """How well both networks agree on the image without each window: (N, K) in [0, 1], from their logits (N, K, C).

    The companion's probability of the answering network's label where that is its own label, too, else 0. The window
    whose removal makes the networks agree is the one that kept them apart.
    """
    label = logits.argmax(2, keepdim=True)
    believed = companion_logits.softmax(2).gather(2, label)[..., 0]
    return believed * (companion_logits.argmax(2) == label[..., 0])


def agreed_window(logits: Tensor, companion_logits: Tensor) -> Tensor:
    """Column (N,) of the window of the largest `agreement`, the first one (0) where the networks never agree."""
    return agreement(logits, companion_logits).argmax(1)


def averaged(logits: Tensor, weight: Tensor) -> Tensor:
    """Mean probabilities (N, C) over the windows' logits (N, K, C), by `weight` (N, K) >= 0."""
    share = weight / weight.sum(1, keepdim=True).clamp_min(1e-12)
    return (logits.softmax(2) * share[..., None]).sum(1)


def _union_share(places: tuple[Tensor, Tensor, Tensor], index: Tensor) -> Tensor:
    """Intersection over union (N, P) of all windows with the one at `index` (N, 1) of each image."""
    top, left, side = places
    rows, columns = (
        (torch.minimum(start + side, (start + side)[index]) - torch.maximum(start, start[index])).clamp_min(0)
        for start in (top, left)
    )
    shared = (rows * columns).to(torch.float32)
    return shared / (side**2 + side[index] ** 2 - shared)
