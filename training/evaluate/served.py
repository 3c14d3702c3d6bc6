"""What the gateway answers to a set of images, in batches through its own pipeline."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields

import numpy as np

from gateway.bundle import Bundle
from gateway.engine import Engine
from gateway.pipeline import Decision, Pipeline
from gateway.verdict import Judge
from training.scoring import batches, png

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Served:
    """Answers to N images: raw, served and companion labels (N,), p-values (N,), and what neutralisation did.

    Through the cascade, `screened` images have the p-value 1; those of the others are the composite's.
    """

    raw: np.ndarray
    served: np.ndarray
    companion: np.ndarray
    p_value: np.ndarray
    confidence: np.ndarray
    neutralised: np.ndarray
    after: np.ndarray
    screened: np.ndarray

    def __len__(self) -> int:
        return len(self.raw)


def open_pipeline(bundle: Bundle) -> Pipeline:
    """The gateway's pipeline on the bundle's CPU calibration, policy `sanitize`."""
    engine = Engine.open(bundle, device="cpu")
    return Pipeline(bundle, engine, Judge(bundle, bundle.calibration("cpu")), action="sanitize")


def serve(
    pipeline: Pipeline,
    images: np.ndarray,
    progress: Progress = lambda _done, _total: None,
    *,
    cascade: bool = False,
    batch: int = 64,
) -> Served:
    """Send uint8 images (N, H, W, C) as PNG through `pipeline`, with `cascade` through its screen first."""
    rows = []
    for some in batches(images, batch):
        decoded = [pipeline.decode(png(image)) for image in some]
        decisions = pipeline.decide_images(decoded, explain=False, screening="on" if cascade else "off")
        rows += [_row(decision) for decision in decisions]
        progress(len(rows), len(images))
    columns = list(zip(*rows, strict=True)) or [()] * len(fields(Served))
    return Served(*(np.asarray(column) for column in columns))


def _row(decision: Decision) -> tuple[int, int, int, float, float, bool, int, bool]:
    """`after` is the neutralised prediction where there is one (served or not), else the raw one."""
    raw, changed = decision.raw, decision.neutralized
    return (
        raw.prediction.index,
        decision.served.prediction.index,
        -1 if raw.companion is None else raw.companion.index,
        raw.verdict.p_value,
        raw.prediction.probability,
        changed is not None,
        changed.result.prediction.index if changed else raw.prediction.index,
        decision.stage == "screen",
    )
