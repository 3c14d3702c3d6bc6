"""Whether a network made of an ONNX file answers as ONNX Runtime does."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import torch
from torch import nn

from training.errors import TrainingError
from training.models.onnx_graph.read import OnnxFile

TOLERANCE = 1e-4  # of the largest logit
HALF_TOLERANCE = 2e-2  # of files in half precision, which ONNX Runtime computes in half precision
PIECES = 2  # batches of a file that is fixed to one, run as a single batch


def check_parity(path: Path, file: OnnxFile, body: nn.Module, side: int) -> float:
    """The largest difference on random images, as a share of the largest logit; `TrainingError` if it is too large."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # noqa: BLE001  # ONNX Runtime's own, without a common root
        reason = " ".join(str(error).split())[:200]
        raise TrainingError(f"{path}: ONNX Runtime cannot load it: {reason}") from None
    kind = session.get_inputs()[0].type
    output = session.get_outputs()[0].name
    images = _images(file, side)
    try:
        theirs = [session.run([output], {file.input: _as_taken(x, file, kind)})[0] for x in images]
    except Exception as error:  # noqa: BLE001
        reason = " ".join(str(error).split())[:200]
        raise TrainingError(f"{path}: ONNX Runtime cannot run it on images of {side} pixels: {reason}") from None
    del session  # its weights are copies
    expected = torch.from_numpy(np.concatenate(theirs).astype(np.float32))
    try:
        with torch.no_grad():
            made = body(torch.from_numpy(np.concatenate(images)))
    except (RuntimeError, ValueError, TypeError, LookupError) as error:
        reason = " ".join(str(error).split())[:200]
        raise TrainingError(f"{path}: read as torch, it cannot run on several batches at once: {reason}") from None
    made = torch.softmax(made, -1) if file.softmax else made
    expected = expected.reshape(len(expected), -1)
    if made.shape != expected.shape:
        raise TrainingError(f"{path}: gives {tuple(made.shape)} where ONNX Runtime gives {tuple(expected.shape)}")
    difference = float((made - expected).abs().max() / expected.abs().max().clamp(min=1e-6))
    limit = HALF_TOLERANCE if file.half else TOLERANCE
    if not difference <= limit:
        raise TrainingError(
            f"{path}: read as torch, its answers differ from ONNX Runtime's by {difference:.1e} of the largest one "
            f"(at most {limit:.0e}); export it in float32, with a free batch axis"
        )
    return difference


def _images(file: OnnxFile, side: int) -> list[np.ndarray]:
    """Batches of random images (N, C, H, W), as the file takes them."""
    rng = np.random.default_rng(5)
    count = file.batch or 2
    shape = (count, file.channels, side, side)
    if file.integer:
        return [rng.integers(0, 256, shape).astype(np.float32) for _ in range(PIECES)]
    return [rng.uniform(-1, 1, shape).astype(np.float32) for _ in range(PIECES)]


def _as_taken(x: np.ndarray, file: OnnxFile, kind: str) -> np.ndarray:
    types: dict[str, type[np.generic]] = {
        "tensor(float16)": np.float16,
        "tensor(double)": np.float64,
        "tensor(uint8)": np.uint8,
        "tensor(int32)": np.int32,
        "tensor(int64)": np.int64,
    }
    x = x.transpose(0, 2, 3, 1) if file.layout == "NHWC" else x
    return np.ascontiguousarray(x.astype(types.get(kind, np.float32)))
