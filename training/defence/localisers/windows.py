"""Localisers that choose a square window, of several sides: the one whose pixels stand out most from the rest.

A pixel map shows how unusual every pixel is; windows of all sides are compared by how far their mean lies above that of
the rest. Nothing depends on the resolution: sides are shares of the image's, maps are standardised by image, and those
of large images are averaged into cells (`working_size`), of which windows are made.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from training.defence.localisers.localiser import Localiser
from training.imaging.resize import area_average, box_mean, resize_bilinear, working_size

SIDE_SHARES = (0.16, 0.22, 0.28, 0.34)
"""Sides of windows as shares of the image's shorter side: 5, 7, 9 and 11 pixels at 32."""
_TEMPERATURE = 0.5  # of the windows' contrasts, which are in standard errors


class WindowLocaliser(Localiser):
    """The window in which a pixel map stands out most; a subclass defines the map."""

    @abstractmethod
    def pixel_map(self, pixels: Tensor) -> Tensor:
        """How suspect every pixel of pixels (N, C, H, W) is by itself, (N, H, W) or of areas (N, h, w), in any unit."""

    def window_scores(self, pixels: Tensor) -> dict[int, Tensor]:
        """By how much every window of cells stands out, by side (`contrasts`)."""
        return contrasts(in_cells(self.pixel_map(pixels), (pixels.shape[2], pixels.shape[3])))

    def locate(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """The window that stands out most; and by how much."""
        return best_window(self.window_scores(pixels), (pixels.shape[2], pixels.shape[3]))

    def soft(self, pixels: Tensor) -> Tensor:
        """The probability of each pixel to be in the window, were one drawn by a softmax of their contrasts."""
        size = (int(pixels.shape[2]), int(pixels.shape[3]))
        scores = self.window_scores(pixels)
        shares = torch.cat([score.flatten(1) for score in scores.values()], 1).div(_TEMPERATURE).softmax(1)
        parts = shares.split([score[0].numel() for score in scores.values()], 1)
        margin = _margin(working_size(*size), size)
        inside = torch.stack(
            [
                F.avg_pool2d(
                    F.pad(part.view_as(score)[:, None], (side - 1 + margin,) * 4),
                    side + 2 * margin,
                    stride=1,
                    divisor_override=1,
                )
                for (side, score), part in zip(scores.items(), parts, strict=True)
            ]
        ).sum(0)
        return (resize_bilinear(inside, size) if margin else inside)[:, 0]


def best_window(scores: Mapping[int, Tensor], size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """{0, 1} (N, H, W): the window of the highest of `scores` by side (N, rows, columns); and that score (N,).

    `scores` are of windows of pixels or of cells of an image of `size`. A window of cells grows by one on each side:
    what lies across its border would be left of a patch, and the fill would be made of it.
    """
    joined = torch.cat([score.flatten(1) for score in scores.values()], 1)
    best = joined.argmax(1, keepdim=True)
    # Without a gather: sums of one number that is not zero are exact.
    one_hot = (torch.arange(joined.shape[1], device=joined.device) == best).to(joined.dtype)
    places = torch.stack(window_places(scores), 1).to(joined)
    top, left, side = (one_hot @ places).split(1, 1)
    first, score = next(iter(scores.items()))
    cells = (score.shape[1] + first - 1, score.shape[2] + first - 1)
    margin = _margin(cells, size)
    rows, columns = (
        ((centres >= start - margin) & (centres < start + side + margin)).to(joined.dtype)
        for start, centres in zip(
            (top, left), (_centres(*each).to(joined) for each in zip(size, cells, strict=True)), strict=True
        )
    )
    return rows[:, :, None] * columns[:, None, :], joined.amax(1)


def _margin(cells: tuple[int, int], size: tuple[int, int]) -> int:
    """By how many cells windows grow on each side: none where cells are pixels."""
    return 0 if cells == (int(size[0]), int(size[1])) else 1


def _centres(pixels: int, cells: int) -> Tensor:
    """Centres (pixels,) of pixels in units of cells."""
    return (torch.arange(int(pixels)) + 0.5) * (int(cells) / int(pixels))


def in_cells(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Maps (N, p, q) of an image at any resolution, in the cells of an image of `size` (height, width)."""
    cells = working_size(*size)
    resize = area_average if maps.shape[1] >= cells[0] else resize_bilinear
    return resize(maps[:, None], cells)[:, 0]


def together(*maps: Tensor) -> Tensor:
    """Sum (N, H, W) of maps (N, H, W) after each is standardised by image: none outweighs another by its units."""
    return torch.stack([standardised(each) for each in maps]).sum(0)


def standardised(maps: Tensor) -> Tensor:
    """Per-image z-scores over the positions of maps (N, P, Q)."""
    centred = maps - maps.mean((1, 2), keepdim=True)
    return centred / (centred.pow(2).mean((1, 2), keepdim=True).sqrt() + 1e-6)


def contrasts(pixel_map: Tensor, sides: Sequence[int] | None = None) -> dict[int, Tensor]:
    """How far the mean of every window of pixel_map (N, H, W) lies above the rest's, by side (default: `window_sides`).

    Each (N, H - side + 1, W - side + 1), in standard errors, were pixels independent (the statistic of the two-sample
    t-test with the image's deviation), so that windows of different sides can be compared: a window that is too small
    gives pixels away, one too large dilutes its mean.
    """
    z, count = standardised(pixel_map)[:, None], pixel_map.shape[1] * pixel_map.shape[2]
    return {
        side: box_mean(z, side)[:, 0] * (side**2 * count / max(count - side**2, 1)) ** 0.5
        for side in sides or window_sides(*pixel_map.shape[1:])
    }


def window_sides(height: int, width: int, *, shares: Sequence[float] = SIDE_SHARES) -> list[int]:
    """Sides in pixels (or cells), ascending, each at least 3 and none twice."""
    shorter = min(int(height), int(width))
    return sorted({max(3, round(share * shorter)) for share in shares})


def window_places(scores: Mapping[int, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Top, left and side (P,) of every window, in the order of `scores` by side (N, rows, columns)."""
    parts = []
    for side, score in scores.items():
        rows, columns = (torch.arange(count, device=score.device) for count in score.shape[1:])
        grid = torch.cartesian_prod(rows, columns)
        parts.append(torch.cat([grid, torch.full_like(grid[:, :1], side)], 1))
    top, left, side_ = torch.cat(parts).unbind(1)
    return top, left, side_
