"""Sets of square masks of which one hides a patch wherever it lies (Xiang, Mahloujifar and Mittal 2022, PatchCleanser).

Along an axis of n pixels, for a patch of p and k masks, the stride is s = ceil((n - p + 1) / k) and a mask's side
m = min(p + s - 1, n); masks begin at 0, s, 2 s, ... and at n - m. A patch that begins at j is inside the mask that
begins at the last multiple of s up to j, or inside the last one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations

import numpy as np

PATCH_SHARE = 0.02
"""Share of the image under the patch of a default certificate: the size that the literature certifies most."""
LARGE = 64
"""Sides from which on three masks an axis are used and not four, since a forward pass costs more."""


@dataclass(frozen=True)
class Axis:
    """Masks along one axis: where they begin, and their side, in pixels."""

    starts: tuple[int, ...]
    side: int


def axis_masks(n: int, patch: int, k: int) -> Axis:
    """At most `k` masks along `n` pixels for a patch of `patch`; `ValueError` unless 1 <= patch <= n and k >= 1."""
    if not 1 <= patch <= n or k < 1:
        raise ValueError(f"patch must be 1 to {n} and k at least 1, got {patch} and {k}")
    stride = math.ceil((n - patch + 1) / k)
    side = min(patch + stride - 1, n)
    return Axis((*range(0, n - side, stride), n - side), side)


@dataclass(frozen=True)
class MaskSet:
    """Masks for a square patch of side `patch` on an image of `height` x `width`, `k` an axis."""

    height: int
    width: int
    patch: int
    k: int

    @property
    def share(self) -> float:
        """Share of the image under the patch."""
        return self.patch**2 / (self.height * self.width)

    @property
    def rows(self) -> Axis:
        return axis_masks(self.height, self.patch, self.k)

    @property
    def columns(self) -> Axis:
        return axis_masks(self.width, self.patch, self.k)

    @property
    def boxes(self) -> list[tuple[int, int, int, int]]:
        """Top, left, height and width of every mask, row after row."""
        rows, columns = self.rows, self.columns
        return [(y, x, rows.side, columns.side) for y in rows.starts for x in columns.starts]

    def __len__(self) -> int:
        return len(self.rows.starts) * len(self.columns.starts)

    @property
    def pairs(self) -> list[tuple[int, int]]:
        """Pairs of different masks, by their places in `boxes`."""
        return list(combinations(range(len(self)), 2))

    @property
    def forwards(self) -> int:
        """Forward passes of a certificate that holds in both rounds."""
        return len(self) + len(self) * (len(self) - 1) // 2

    def singles(self) -> np.ndarray:
        """The masks (M, H, W), float32 in {0, 1}; read-only."""
        return _singles(self)

    def union(self, pair: tuple[int, int]) -> np.ndarray:
        """What two masks hide (H, W)."""
        both = self.singles()
        return np.asarray(np.maximum(both[pair[0]], both[pair[1]]))


@lru_cache(maxsize=32)
def _singles(masks: MaskSet) -> np.ndarray:
    made = np.zeros((len(masks), masks.height, masks.width), np.float32)
    for mask, (y, x, height, width) in zip(made, masks.boxes, strict=True):
        mask[y : y + height, x : x + width] = 1.0
    made.flags.writeable = False
    return made


def default_k(height: int, width: int) -> int:
    """Masks an axis: four, and three for images of `LARGE` pixels and more."""
    return 4 if max(height, width) < LARGE else 3


def default_patch(height: int, width: int, share: float = PATCH_SHARE) -> int:
    """Side of the smallest square patch that covers at least `share` of the image, within `largest_patch`."""
    return min(max(1, math.ceil(math.sqrt(share * height * width))), largest_patch(height, width))


def largest_patch(height: int, width: int) -> int:
    """Side of the largest patch that is certified: half the shorter side: two masks leave little then."""
    return max(1, min(height, width) // 2)
