"""The four graphs of a bundle whose network another server runs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from gateway.core.manifest import InputSpec
from gateway.core.upstream import UPSTREAM_FILES
from training.defence.localisers import LOCALISER
from training.defence.scores.score import AnswerScore
from training.defence.upstream import GRID, ROWS, Explained, Judged, Perturbed, Rows
from training.export.onnx_file import EXAMPLE_BATCH, export_module
from training.util.module_modes import seeded


def export_upstream(
    folder: Path, spec: InputSpec, *, classes: int, scores: Sequence[AnswerScore], localiser: str = LOCALISER
) -> None:
    """Write them into `folder`, for images of that size and answers (N, `classes`). Raises `ExportError`."""
    n, size, generator = EXAMPLE_BATCH, (spec.height, spec.width), seeded(0)
    pixels = torch.rand(n, spec.channels, *size, generator=generator)
    mask = (torch.rand(n, *size, generator=generator) < 0.1).float()
    answers, perturbed = (torch.randn(n, count, classes, generator=generator) for count in (ROWS, GRID * GRID))
    modules = [
        (Rows(localiser), {"pixels": pixels, "mask": mask}, ["rows", "roa", "roa_score", "neutral_pixels"]),
        (Judged(scores), {"answers": answers, "roa": mask}, ["scores", "roi"]),
        (Perturbed(), {"pixels": pixels}, ["perturbed"]),
        (Explained(size), {"answers": answers, "perturbed": perturbed}, ["saliency"]),
    ]
    for file, (module, inputs, outputs) in zip(UPSTREAM_FILES, modules, strict=True):
        export_module(module.eval(), folder / file, inputs=inputs, outputs=outputs)
