"""Outputs of the parts of the defence graph, one type for each part (docs/architecture.md, "Defence graph").

All arrays are float32 with N, the batch, first; of a single image (`image`) that axis is dropped. K classes, H x W
pixels of C channels, S scores, L layers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Self, TypeVar

import numpy as np

from gateway.core.manifest import Part


@dataclass(frozen=True, kw_only=True)
class Outputs:
    """The outputs of every part: logits (N, K); the companion's (N, K) are None where the bundle has no companion."""

    logits: np.ndarray
    companion_logits: np.ndarray | None = None

    def arrays(self) -> dict[str, np.ndarray]:
        """The outputs by name."""
        return {name: value for name, value in vars(self).items() if value is not None}

    @property
    def finite(self) -> np.ndarray:
        """Of a batch: which images (N,) have finite outputs throughout; the others do not fail with it."""
        return np.asarray(np.all([np.isfinite(v).reshape(len(v), -1).all(1) for v in self.arrays().values()], axis=0))

    def image(self, i: int) -> Self:
        """Of a batch: the outputs of image `i`, without the axis N."""
        return type(self)(**{name: value[i] for name, value in self.arrays().items()})


@dataclass(frozen=True, kw_only=True)
class ScreenOutputs(Outputs):
    """The part `screen`: scores (N, S1) that need no view."""

    screen_scores: np.ndarray


@dataclass(frozen=True, kw_only=True)
class VerdictOutputs(Outputs):
    """The part `verdict`: regions (N, H, W) in {0, 1}, by how much the region of attack stands out (N,), pixels after
    inpainting (N, C, H, W), deviation by layer (N, L) and scores (N, S).
    """

    roi: np.ndarray
    roa: np.ndarray
    roa_score: np.ndarray
    neutral_pixels: np.ndarray
    layer_deviation: np.ndarray
    scores: np.ndarray


@dataclass(frozen=True, kw_only=True)
class FullOutputs(VerdictOutputs):
    """The part `full`: the verdict's outputs and the saliency (N, H, W) in [0, 1] of the served label."""

    saliency: np.ndarray


PartOutputs = ScreenOutputs | VerdictOutputs
"""What some part gives; `FullOutputs` are `VerdictOutputs`."""
O = TypeVar("O", bound=Outputs)
_TYPES: Mapping[Part, type[PartOutputs]] = {"screen": ScreenOutputs, "verdict": VerdictOutputs, "full": FullOutputs}


def outputs_of(part: Part, arrays: Mapping[str, np.ndarray]) -> PartOutputs:
    """The typed outputs of a part from its arrays by name; `TypeError` where one is missing or not the part's."""
    return _TYPES[part](**arrays)


def names_of(part: Part) -> list[str]:
    """Names of a part's outputs."""
    return [field.name for field in fields(_TYPES[part])]


def concatenated(batches: Sequence[O]) -> O:
    """The outputs of several batches of one part, in order, as one batch."""
    arrays = {name: np.concatenate([vars(each)[name] for each in batches]) for name in batches[0].arrays()}
    return type(batches[0])(**arrays)


def softmax(logits: np.ndarray) -> np.ndarray:
    """Probabilities (..., K) of logits (..., K), in float64."""
    shifted = np.exp(logits.astype(np.float64) - logits.max(-1, keepdims=True))
    return np.asarray(shifted / shifted.sum(-1, keepdims=True))
