"""What a group of near-duplicates behaves like: a search, a video, a camera that stands still or is stuck, retries.

A search changes an image in many directions, a little at a time. A camera that moves, turns or zooms changes it in
few: its images lie on a curve or a surface. How many dimensions the newest images of a group span, locally, is
estimated from the distances to their nearest neighbours (Levina and Bickel 2004, eq. 8), and once more at a larger
scale, where the noise of a camera no longer counts. What is read beside it: how far they spread against the step from
each image to the nearest one before it (a curve spreads far), how large that step is, and how often the label changes
along it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

Pattern = Literal["search", "video", "still_camera", "stuck_camera", "retries"]
Resembles = Literal["decision_based", "score_based", "transfer_burst"]

WINDOW = 32
"""Different images that a group is judged by, the newest."""
EARLY = 24
"""The same where the label changes often."""
NEIGHBOURS = 8
LINK = 0.25
"""Largest distance of an image to an earlier one of its group, by `detail`; unlike images are about 1.4 apart."""
DIMENSIONS = 2.6
"""Local dimension from which images are no camera's motion."""
WIDE_NEIGHBOURS = 16
WIDE_DIMENSIONS = 2.2
"""The same at the larger scale."""
NOISE = 15.0
"""Local dimension from which images differ by independent noise alone."""
MOVED = 1.7
"""Way of the mean of the newest images from an earlier one, over that by noise alone, from which it has a target."""
STRETCH = 2.0
"""Spread over step beyond which images lie along a curve."""
QUIET = 0.9
"""Median step, in levels of 255, up to which noise of a camera at rest explains differences."""
FLIPS = 0.2
"""Share of label changes along the links from which somebody looks for a decision boundary."""
FEW_FLIPS = 0.1
BURST = 5.0
"""Median step, in levels, from which images of a search were made elsewhere."""
LONG = 7.0
"""Median step, in levels, beyond which only label changes make a search."""
DARK = 0.035
"""Median contrast (of 1) up to which images are too flat to be judged by their differences alone."""
_TINY = 1e-6


@dataclass(frozen=True)
class Shape:
    """The geometry of the newest different images of a group: local dimension, at two scales; spread over step; step.

    `step` is in levels of 255.
    """

    dimension: float
    wide: float
    stretch: float
    step: float
    contrast: float
    images: int


def shape_of(details: np.ndarray, contrasts: np.ndarray) -> Shape:
    """The shape of images by detail fingerprints (n, DETAIL), in order, n > WIDE_NEIGHBOURS; contrasts (n,)."""
    squares = (details * details).sum(1)
    distances = np.sqrt(np.maximum(squares[:, None] + squares[None] - 2 * details @ details.T, _TINY**2))
    earlier = np.where(np.tri(len(details), k=-1, dtype=bool), distances, np.inf)[1:].min(1)
    np.fill_diagonal(distances, np.inf)
    near = np.sort(distances, axis=1)[:, :WIDE_NEIGHBOURS]
    logs = np.log(near[:, NEIGHBOURS - 1, None] / near[:, : NEIGHBOURS - 1]).mean()
    wide = np.log(near[:, -1] / near[:, NEIGHBOURS - 1]).mean()
    centred = details - details.mean(0)
    spread = np.sqrt((centred * centred).sum(1).mean())
    return Shape(
        dimension=float(1 / max(logs, _TINY)),
        wide=float(np.log(WIDE_NEIGHBOURS / NEIGHBOURS) / max(wide, _TINY)),
        stretch=float(spread / max(np.sqrt((earlier * earlier).mean()), _TINY)),
        step=float(np.median(earlier) * np.median(contrasts) * 255),
        contrast=float(np.median(contrasts)),
        images=len(details),
    )


def moved(details: np.ndarray, earlier: np.ndarray) -> float:
    """How far the mean of images (n, DETAIL) lies from an `earlier` such mean (DETAIL,), over what noise explains."""
    mean = details.mean(0)
    spread = np.sqrt(((details - mean) ** 2).sum(1).mean())
    return float(np.linalg.norm(mean - earlier) / max(spread * np.sqrt(2 / len(details)), _TINY))


def looks(shape: Shape, flips: float, moved: float) -> Pattern | None:
    """What different images look like, by their shape, the share of label changes along links, and `moved`."""
    if flips >= FLIPS and shape.stretch <= STRETCH + 1:
        return "search"
    if shape.images < WINDOW:
        return None
    if flips < FEW_FLIPS and (shape.step < QUIET or (shape.dimension > NOISE and moved < MOVED)):
        return "still_camera" if shape.stretch <= STRETCH else "video"
    directions = shape.dimension >= DIMENSIONS and shape.wide >= WIDE_DIMENSIONS
    comparable = shape.step <= LONG and shape.contrast > DARK
    return "search" if directions and comparable and shape.stretch <= STRETCH else "video"


def resembles(shape: Shape, flips: float) -> Resembles:
    """Which kind of attack a search resembles: by decisions alone, by scores, or tried examples made elsewhere."""
    if flips >= FEW_FLIPS:
        return "decision_based"
    return "transfer_burst" if shape.step >= BURST else "score_based"
