"""Region of importance and region of attack (after Chattopadhyay et al. 2020, arXiv 2011.10794).

RoI: where the companion, or without one the network itself, looks for the served label (class activation map, Zhou et
al. 2016, arXiv 1512.04150; Grad-CAM for a head that is not linear in spatial means). RoA: the square window, of several
sides, whose texture and colours stand out most from the rest of the image; no network is asked.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from training.imaging.resize import box_mean, resize_bilinear

ROI_LEVEL = 0.4
SIDE_SHARES = (0.16, 0.22, 0.28, 0.34)
"""Sides of windows as shares of the image's shorter side: 5, 7, 9 and 11 pixels at 32."""


def class_activation_map(features: Tensor, weight: Tensor, one_hot: Tensor, size: tuple[int, int]) -> Tensor:
    """CAM (N, H, W) >= 0 of last features (N, C, h, w), head weight (K, C) and the marked class one_hot (N, K)."""
    channel_weight = one_hot @ weight
    cam = (features * channel_weight[:, :, None, None]).sum(1, keepdim=True)
    return resize_bilinear(F.relu(cam), size)[:, 0]


def gradient_activation_map(features: Tensor, gradient: Tensor, size: tuple[int, int]) -> Tensor:
    """Grad-CAM (N, H, W) >= 0 of features and the label's gradient at them, both (N, C, h, w).

    Channels weigh as much as their gradient's sum (Selvaraju et al. 2017, arXiv 1610.02391), which for a linear head on
    spatial means is the class activation map.
    """
    cam = (features * gradient.sum((2, 3), keepdim=True)).sum(1, keepdim=True)
    return resize_bilinear(F.relu(cam), size)[:, 0]


def region_of_importance(cam: Tensor, level: float = ROI_LEVEL) -> Tensor:
    """{0, 1} (N, H, W): pixels with at least `level` of the map's own maximum; empty where the map is zero."""
    peak = cam.amax((1, 2), keepdim=True)
    return ((cam >= level * peak) & (peak > 0)).to(cam.dtype)


def region_of_attack(pixels: Tensor) -> tuple[Tensor, Tensor]:
    """{0, 1} (N, H, W): the window of pixels (N, C, H, W) that stands out most; and by how much (N,) (`contrasts`)."""
    size = (pixels.shape[2], pixels.shape[3])
    scores = contrasts(attack_map(pixels))
    joined = torch.cat([score.flatten(1) for score in scores.values()], 1)
    best = joined.argmax(1, keepdim=True)
    # Without a gather: sums of one number that is not zero are exact.
    one_hot = (torch.arange(joined.shape[1], device=joined.device) == best).to(joined.dtype)
    places = torch.stack(window_places(scores), 1).to(joined)
    top, left, side = (one_hot @ places).split(1, 1)
    rows, columns = (
        ((steps >= start) & (steps < start + side)).to(joined.dtype)
        for start, steps in zip(
            (top, left), (torch.arange(s, device=joined.device).to(joined.dtype) for s in size), strict=True
        )
    )
    return rows[:, :, None] * columns[:, None, :], joined.amax(1)


def attack_map(pixels: Tensor) -> Tensor:
    """How suspect every pixel is by itself (N, H, W): `texture` and `colourfulness` together."""
    return together(texture(pixels), colourfulness(pixels))


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
    """Sides in pixels, ascending, each at least 3 and none twice."""
    return sorted({max(3, round(share * min(height, width))) for share in shares})


def window_places(scores: Mapping[int, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Top, left and side (P,) of every window, in the order of `scores` by side (N, rows, columns)."""
    parts = []
    for side, score in scores.items():
        rows, columns = (torch.arange(count, device=score.device) for count in score.shape[1:])
        grid = torch.cartesian_prod(rows, columns)
        parts.append(torch.cat([grid, torch.full_like(grid[:, :1], side)], 1))
    top, left, side_ = torch.cat(parts).unbind(1)
    return top, left, side_
