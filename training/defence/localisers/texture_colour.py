"""The window whose texture and colours stand out most from the rest of the image; no network is used."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from training.defence.localisers.windows import WindowLocaliser, in_cells, standardised, together
from training.imaging.resize import area_average

COARSE = (32, 16)
"""Pixels of the shorter side at which the texture of larger images is looked at, too."""


class TextureColour(WindowLocaliser):
    """`texture` and `colourfulness` together (docs/methods.md, "Region of attack")."""

    name = "texture_colour"
    title = "Texture and colour"
    meaning = "the window most like a patch"

    def pixel_map(self, pixels: Tensor) -> Tensor:
        size = (int(pixels.shape[2]), int(pixels.shape[3]))
        return together(scaled_texture(pixels), in_cells(colourfulness(pixels), size))


def scaled_texture(pixels: Tensor) -> Tensor:
    """`texture` in the cells of `working_size`: of images below 64 pixels as they are; of larger ones at three scales.

    Their pixels show noise, which is gone at 32 pixels a side; what a patch has of coarser colours shows at 32 and 16
    pixels alone, where it is as in a small image. Each cell counts at the scale at which it stands out most.
    """
    size = (int(pixels.shape[2]), int(pixels.shape[3]))
    if min(size) < 2 * COARSE[0]:
        return in_cells(texture(pixels), size)
    scales = [pixels, *(area_average(pixels, _shrunk(size, side)) for side in COARSE)]
    return torch.stack([standardised(in_cells(texture(each), size)) for each in scales]).amax(0)


def _shrunk(size: tuple[int, int], side: int) -> tuple[int, int]:
    """`size` with `side` pixels on the shorter side."""
    return round(side * size[0] / min(size)), round(side * size[1] / min(size))


def texture(pixels: Tensor) -> Tensor:
    """Distance (N, H, W) of every pixel from the median of its 3 x 3 neighbourhood, summed over channels.

    Unlike a high-pass filter a median doesn't spread a patch's edge to the pixels around it, so that the map ends
    where the patch does.
    """
    return (pixels - median_3x3(pixels)).abs().sum(1)


def median_3x3(x: Tensor) -> Tensor:
    """Median (N, C, H, W) of the 3 x 3 pixels around each of x, borders replicated.

    Columns of three are sorted once for all rows: the median of nine is the median of the largest minimum, the middle
    median and the smallest maximum (Smith 1996, "Implementing median filters in XC4000E FPGAs").
    """
    padded = F.pad(x, (1, 1, 1, 1), mode="replicate")
    height, width = x.shape[2], x.shape[3]
    a, b, c = (padded[:, :, i : i + height] for i in range(3))
    low, high = torch.minimum(a, b), torch.maximum(a, b)
    sorted_columns = torch.minimum(low, c), torch.maximum(low, torch.minimum(high, c)), torch.maximum(high, c)
    least, middle, most = ([part[..., j : j + width] for j in range(3)] for part in sorted_columns)
    return _median(
        torch.maximum(torch.maximum(least[0], least[1]), least[2]),
        _median(*middle),
        torch.minimum(torch.minimum(most[0], most[1]), most[2]),
    )


def _median(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    return torch.maximum(torch.minimum(a, b), torch.minimum(torch.maximum(a, b), c))


def colourfulness(pixels: Tensor) -> Tensor:
    """Largest less smallest channel (N, H, W): a patch's colours lie in corners of the cube. Zero for grey images."""
    return pixels.amax(1) - pixels.amin(1)
