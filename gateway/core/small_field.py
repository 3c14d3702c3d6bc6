"""A network whose cells see a small field of pixels each, and what it proves against patches in one forward pass.

The network gives evidence for each class at each cell of a grid, and its logits are the means over all cells (a small
receptive field with linear pooling: Xiang et al. 2021, PatchGuard; Metzen and Yatsura 2021, BagCert). A square patch
changes no cell but those whose field it touches, a window of cells. Leaving windows out of the sum therefore hides the
patch for certain, and the theorem on double masking (Xiang, Mahloujifar and Mittal 2022, PatchCleanser, Theorem 1)
holds with windows in place of masks: where the label is the same without every two windows, it is proved.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

SMALL_FIELD = "small_field.onnx"
OUTPUTS = ("logits", "one", "two", "others")
HARDEST = 8
"""Classes whose evidence is summed without every two windows; of the others a bound suffices, or nothing is proved."""

TEMPERATURE = 2.0
"""What logits are divided by before windows vote: sure labels differ more then, and benign objections are not all 1."""


class SmallFieldSpec(BaseModel):
    """The grid: cell i of an axis sees the pixels from `first + i * stride` on, `field` of them."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    field: int = Field(ge=1)
    stride: int = Field(ge=1)
    first: int
    height: int = Field(ge=1, description="cells")
    width: int = Field(ge=1, description="cells")

    def seeing(self, cells: int, start: int, patch: int) -> list[int]:
        """Those of the `cells` of an axis that see one of `patch` pixels from `start` on."""
        firsts = (self.first + i * self.stride for i in range(cells))
        return [i for i, first in enumerate(firsts) if first < start + patch and start < first + self.field]

    def touched(self, cells: int, pixels: int, patch: int) -> list[tuple[int, int]]:
        """Ranges of the `cells` of an axis of `pixels` of which one holds all that a patch anywhere can touch."""
        found = set()
        for start in range(pixels - patch + 1):
            if seen := self.seeing(cells, start, patch):
                found.add((seen[0], seen[-1] + 1))
        inside = {a for a in found for b in found if a != b and b[0] <= a[0] and a[1] <= b[1]}
        return sorted(found - inside)


@dataclass(frozen=True)
class Windows:
    """Windows of cells for a patch: `windows` (cells, Q) is 1 in each, `kept` (cells, P) 0 in each two of them."""

    windows: np.ndarray
    kept: np.ndarray

    @property
    def count(self) -> int:
        """Q, the number of windows."""
        return int(self.windows.shape[1])


@dataclass(frozen=True)
class WindowSet:
    """The windows for a square patch of side `patch` on an image of `height` x `width`, in the place of masks."""

    spec: SmallFieldSpec
    height: int
    width: int
    patch: int

    def __len__(self) -> int:
        return windows_for(self.spec, self.height, self.width, self.patch).count

    @property
    def share(self) -> float:
        """Share of the image under the patch."""
        return self.patch**2 / (self.height * self.width)

    @property
    def boxes(self) -> list[tuple[int, int, int, int]]:
        """Top, left, height and width in pixels of what the cells of each window see."""

        def seen(cells: int, pixels: int) -> list[tuple[int, int]]:
            found = []
            for begin, end in self.spec.touched(cells, pixels, self.patch):
                first = max(0, self.spec.first + begin * self.spec.stride)
                last = min(pixels, self.spec.first + (end - 1) * self.spec.stride + self.spec.field)
                found.append((first, last - first))
            return found

        rows, columns = seen(self.spec.height, self.height), seen(self.spec.width, self.width)
        return [(top, left, height, width) for top, height in rows for left, width in columns]

    def hides(self, side: int) -> np.ndarray:
        """Which windows hold every cell that sees a square of `side` at each place (P, M), in rows from the top left.

        A cell that sees the square beside others counts, so that a window may hide less than its box.
        """

        def axis(cells: int, pixels: int) -> np.ndarray:
            windows = self.spec.touched(cells, pixels, self.patch)
            held = np.empty((pixels - side + 1, len(windows)), bool)
            for start in range(len(held)):
                seen = self.spec.seeing(cells, start, side)
                held[start] = [all(begin <= cell < end for cell in seen) for begin, end in windows]
            return held

        rows, columns = axis(self.spec.height, self.height), axis(self.spec.width, self.width)
        both: np.ndarray = rows[:, None, :, None] & columns[None, :, None, :]
        return both.reshape(len(rows) * len(columns), len(self))

    def logits(self, evidence: np.ndarray) -> np.ndarray:
        """Logits (..., M, K) over `TEMPERATURE` without each window, of evidence (..., K, h, w)."""
        flat = evidence.reshape(*evidence.shape[:-2], -1)
        windows = windows_for(self.spec, self.height, self.width, self.patch).windows
        left: np.ndarray = flat.sum(-1)[..., None] - flat @ windows
        return left.swapaxes(-1, -2) / TEMPERATURE

    def whole(self, evidence: np.ndarray) -> np.ndarray:
        """Logits (..., K) over `TEMPERATURE` with nothing left out."""
        found: np.ndarray = evidence.sum((-1, -2)) / TEMPERATURE
        return found


@lru_cache(maxsize=8)
def windows_for(spec: SmallFieldSpec, height: int, width: int, patch: int) -> Windows:
    """The windows of a square patch of side `patch` on an image of `height` x `width` pixels, float32.

    `ValueError` unless the patch fits on the image.
    """
    if not 1 <= patch <= min(height, width):
        raise ValueError(f"patch must be 1 to {min(height, width)}, got {patch}")
    singles = []
    for top, bottom in spec.touched(spec.height, height, patch):
        for left, right in spec.touched(spec.width, width, patch):
            window = np.zeros((spec.height, spec.width), np.float32)
            window[top:bottom, left:right] = 1.0
            singles.append(window.ravel())
    windows = np.stack(singles)
    first, second = np.triu_indices(len(windows))
    kept = 1.0 - np.maximum(windows[first], windows[second])
    return Windows(np.ascontiguousarray(windows.T), np.ascontiguousarray(kept.T))


@dataclass(frozen=True)
class SmallFieldFound:
    """What the network says of one image: its label, and by how much of logits that leads every other class.

    `one`: without the worst window; `two`: without the worst two; both are bounds from below.
    """

    index: int
    one: float
    two: float


def found_in(logits: np.ndarray, one: np.ndarray, two: np.ndarray, others: np.ndarray) -> list[SmallFieldFound]:
    """The graph's outputs (N, K), (N,), (N,), (N,) by image; where one is not a number nothing is proved."""
    index = logits.argmax(1).tolist()
    leads = [np.where(np.isnan(each), -np.inf, np.fmin(each, others)) for each in (one, two)]
    return [SmallFieldFound(label, float(a), float(b)) for label, a, b in zip(index, *leads, strict=True)]


def check_fields(
    spec: SmallFieldSpec, cells: np.ndarray, changed: np.ndarray, boxes: list[tuple[int, int]], patch: int
) -> bool:
    """Whether evidence (N, K, h, w) of images that were `changed` inside a patch differs in cells that see it alone.

    `cells` (1, K, h, w) is that of the image before; `boxes` has top and left of each patch, of side `patch`.
    """

    def sees(cells: int, start: int) -> np.ndarray:
        begins = spec.first + np.arange(cells) * spec.stride
        return (begins < start + patch) & (start < begins + spec.field)

    same = (changed == cells).all(1)
    return all(
        bool((same[i] | (sees(spec.height, top)[:, None] & sees(spec.width, left)[None])).all())
        for i, (top, left) in enumerate(boxes)
    )
