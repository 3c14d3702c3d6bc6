"""What a group of near-duplicates behaves like: a search, a video, a camera that stands still or is stuck, retries.

A search changes an image in many directions, a little at a time. A camera that moves, turns or zooms changes it in
few: its images lie on a curve or a surface. How many dimensions the newest images of a group span, locally, is
estimated from the distances to their nearest neighbours (Levina and Bickel 2004, eq. 8), and once more at a larger
scale, where the noise of a camera no longer counts. What is read beside it: how far they spread against the step from
each image to the nearest one before it (its parent; a curve spreads far), how large that step is, and the provenance of
the images. A camera's images descend one from the other, each from the one before; a search asks for many changes of
one image, the best so far. A search for a decision boundary stays close to it: margins are small, the label changes.
Thresholds were chosen on the training tracks of the traffic signs and on searches on training images
(`benchmarks/campaigns.py` measures both on others).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np

Pattern = Literal["search", "video", "still_camera", "stuck_camera", "retries"]
Resembles = Literal["decision_based", "score_based", "transfer_burst"]

WINDOW = 32
"""Different images that a group is judged by, the newest."""
EARLY = 20
"""The same where answers are close to a decision boundary."""
MIDDLE = 24
"""The same where few images have descendants."""
NEIGHBOURS = 8
LINK = 0.35
"""Largest distance of an image to an earlier one of its group, by `detail`; unlike images are about 1.4 apart."""
LINK_LEVELS = 5.0
"""The same in levels of 255, for images of little contrast, on which a small change is a large part."""
LINK_MOST = 0.6
STRAND = 0.4
"""Largest step within a strand of a group, as a share of that."""
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
PARENTS = 0.45
"""Parents over images, up to which many descend from few."""
FEW_PARENTS = 0.4
"""The same for fewer than WINDOW images."""
BLOCK_PARENTS = 0.55
"""The same where changes are of whole blocks."""
BLOCKS = 0.8
"""Distance by means of cells over that by pixels, from which changes are of blocks; edges that move are at about .6."""
CHAIN = 0.15
"""Share of images whose parent is the one just before, up to which they are no film, however many parents there are."""
BOUNDARY = 1.65
"""Sum of four shares (`Provenance.boundary`) from which somebody looks for a decision boundary."""
EARLY_BOUNDARY = 1.85
"""The same for fewer than WINDOW images."""
BLOCK_BOUNDARY = 1.4
"""The same where changes are of whole blocks, by the ratio PLAIN_BLOCKS, and the label changes as often as FLIPS."""
PLAIN_BLOCKS = 0.95
FLIPS = 0.2
HUB = 0.5
"""Share of images with one parent from which a search along a boundary has a centre; of noise alone it is below .4."""
BOUNDARY_STRETCH = 3.0
BOUNDARY_PARENTS = 0.85
BOUNDARY_NOISE = 13.0
"""Local dimension from which a search along a boundary without a centre could be noise about an unclear image."""
SMALL_MARGIN = 0.5
TINY_MARGIN = 0.2
FEW_FLIPS = 0.1
"""Share of label changes along the links up to which a camera is at rest, and no decision boundary is looked for."""
BURST = 5.0
"""Median step, in levels, from which images of a search were made elsewhere."""
LONG = 7.0
"""Median step, in levels, beyond which only label changes make a search."""
FILM_CHAIN = 0.5
"""Share of images whose parent is the one just before, from which images that far apart are a film of an unclear sign,
however its label changes: a walk along a boundary takes small steps."""
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


@dataclass(frozen=True)
class Link:
    """A different image, the image before it that it is most like (its parent), and whether their labels differ.

    `length` is their distance by pixels, `blocks` that by the means of cells, over it.
    """

    number: int
    parent: int
    flip: bool
    blocks: float
    length: float


@dataclass(frozen=True)
class Provenance:
    """How images descend from each other, as shares of the newest: label changes, parents, small and tiny margins.

    `hub` is the share of the parent that has most images, `chain` that of images whose parent is the one just before in
    the group, `blocks` the median distance to the parent
    by the means of cells, over that by pixels.
    """

    flips: float
    parents: float
    small: float
    tiny: float
    hub: float
    chain: float
    blocks: float

    @property
    def boundary(self) -> float:
        """How much speaks for a search along a decision boundary, from 0 to 4."""
        return self.flips + self.small + self.tiny + 1 - self.parents


def provenance_of(links: Sequence[Link], margins: np.ndarray) -> Provenance:
    """The provenance of images, by their links (at least one) and margins (n,) in [0, 1]."""
    parents = Counter(link.parent for link in links)
    return Provenance(
        flips=sum(link.flip for link in links) / len(links),
        parents=len(parents) / len(links),
        small=float((margins < SMALL_MARGIN).mean()),
        tiny=float((margins < TINY_MARGIN).mean()),
        hub=max(parents.values()) / len(links),
        chain=sum(link.parent == before.number for before, link in pairwise(links)) / max(len(links) - 1, 1),
        blocks=float(np.median([link.blocks for link in links])),
    )


def link_of(contrast: float) -> float:
    """Largest distance, by `detail`, at which an image of this contrast (of 1) belongs to an earlier one's group."""
    return min(max(LINK, LINK_LEVELS / (255 * max(contrast, _TINY))), LINK_MOST)


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


def looks(shape: Shape, links: Provenance, moved: float) -> Pattern | None:
    """What the newest different images look like, by their shape, provenance, and `moved`; None for too few to say."""
    full = shape.images >= WINDOW
    if _along_a_boundary(shape, links, BOUNDARY if full else EARLY_BOUNDARY):
        return "search"
    if shape.images < MIDDLE:
        return None
    noise = shape.dimension > NOISE and moved < MOVED
    if noise or (links.flips < FEW_FLIPS and shape.step < QUIET):
        return ("still_camera" if shape.stretch <= STRETCH else "video") if full else None
    directions = shape.dimension >= DIMENSIONS and shape.wide >= WIDE_DIMENSIONS and shape.stretch <= STRETCH
    few = links.parents <= (BLOCK_PARENTS if links.blocks >= BLOCKS else PARENTS if full else FEW_PARENTS)
    if directions and (few or (full and links.chain <= CHAIN)) and shape.step <= LONG:
        return "search"
    return "video" if full else None


def _along_a_boundary(shape: Shape, links: Provenance, needed: float) -> bool:
    """Whether margins and labels speak for a search, and the images are no film and no noise about an unclear one."""
    if links.blocks >= PLAIN_BLOCKS and links.flips >= FLIPS and links.parents <= BOUNDARY_PARENTS:
        return links.boundary >= BLOCK_BOUNDARY
    if links.boundary < needed or (links.chain > FILM_CHAIN and shape.step > LONG):
        return False
    directions = DIMENSIONS <= shape.dimension <= BOUNDARY_NOISE and shape.wide >= WIDE_DIMENSIONS
    walk = directions and shape.stretch <= BOUNDARY_STRETCH and links.parents <= BOUNDARY_PARENTS
    return walk or links.hub >= HUB


def resembles(shape: Shape, links: Provenance, flips: float) -> Resembles:
    """Which kind of attack a search resembles: by decisions alone, by scores, or tried examples made elsewhere.

    `flips` is the share of label changes among all images of the search.
    """
    if flips >= FEW_FLIPS or links.boundary >= BOUNDARY:
        return "decision_based"
    return "transfer_burst" if shape.step >= BURST else "score_based"
