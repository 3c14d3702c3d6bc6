"""What the gateway answers to a set of images, in batches through its own pipeline."""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np

from gateway.core.decision import Decision
from gateway.core.engine import Engine
from gateway.core.loading import Bundle
from gateway.core.pipeline import Pipeline
from training.served.scoring import batches, png
from training.util.signatures import Progress, silent


@dataclass(frozen=True)
class Served:
    """Answers to N images: raw, served and companion labels (N,), p-values (N,), and what neutralisation did.

    `scores` (N, S) are the graph's, `confidence` the softmax of the raw label, `after` the label of the neutralised
    image where there is one (served or not), else the raw one. Through the cascade, `screened` images have the p-value
    1 and no scores (NaN); p-values of the others are the composite's.
    """

    raw: np.ndarray
    served: np.ndarray
    companion: np.ndarray
    p_value: np.ndarray
    confidence: np.ndarray
    neutralised: np.ndarray
    after: np.ndarray
    screened: np.ndarray
    scores: np.ndarray

    def __len__(self) -> int:
        return len(self.raw)

    def take(self, index: np.ndarray) -> Served:
        """The answers to some of the images."""
        return Served(**{field.name: getattr(self, field.name)[index] for field in fields(self)})


def open_pipeline(bundle: Bundle) -> Pipeline:
    """The gateway's pipeline on the bundle's CPU calibration, policy `sanitize`, without votes and pool."""
    return Pipeline.on(Engine.open(bundle, device="cpu"), bundle, action="sanitize", pool=False)


def serve(
    pipeline: Pipeline,
    images: np.ndarray,
    progress: Progress = silent,
    *,
    cascade: bool = False,
    batch: int = 64,
) -> Served:
    """Send uint8 images (N, H, W, C) as PNG through `pipeline`, with `cascade` through its screen first."""
    decisions: list[Decision] = []
    for some in batches(images, batch):
        decoded = [pipeline.decode(png(image)) for image in some]
        decisions += pipeline.decide_images(decoded, explain=False, screening="on" if cascade else "off")
        progress(len(decisions), len(images))
    none = np.full(len(pipeline.bundle.manifest.scores), np.nan, np.float32)
    raws = [decision.raw for decision in decisions]
    after = [decision.neutralized.result if decision.neutralized else decision.raw for decision in decisions]
    scores = [none if raw.whole is None else raw.whole.scores for raw in raws]
    return Served(
        raw=np.array([raw.prediction.index for raw in raws], np.int64),
        served=np.array([decision.served.prediction.index for decision in decisions], np.int64),
        companion=np.array([raw.companion.index if raw.companion else -1 for raw in raws], np.int64),
        p_value=np.array([raw.verdict.p_value for raw in raws], np.float64),
        confidence=np.array([raw.prediction.probability for raw in raws], np.float64),
        neutralised=np.array([decision.neutralized is not None for decision in decisions], bool),
        after=np.array([each.prediction.index for each in after], np.int64),
        screened=np.array([decision.stage == "screen" for decision in decisions], bool),
        scores=np.stack(scores) if scores else np.empty((0, len(none)), np.float32),
    )
