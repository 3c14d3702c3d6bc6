"""An ONNX file as a torch module that can be differentiated, traced and exported again."""

from __future__ import annotations

from pathlib import Path

from training.models.onnx_graph.body import OnnxBody
from training.models.onnx_graph.parity import check_parity
from training.models.onnx_graph.plan import planned
from training.models.onnx_graph.read import OnnxFile


def onnx_body(path: Path, file: OnnxFile, side: int) -> OnnxBody:
    """The network in `file`, read from `path`, for images of `side` pixels, its answers compared to ONNX Runtime's.

    `TrainingError` names an operator that is not read, or how far the answers are apart.
    """
    body = OnnxBody(file, planned(file, side, str(path)))
    body.eval().requires_grad_(False)
    if not file.bare:
        check_parity(path, file, body, side)
    return body
