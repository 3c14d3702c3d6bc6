"""Running images through the system as served: the gateway's decoder, its ONNX Runtime session and its verdicts.

Calibration and evaluation use this module and nothing else, so that what is measured is what is served.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Literal, overload

import numpy as np
from PIL import Image

from gateway.core.decode import decode_image, to_pixels
from gateway.core.engine import Engine
from gateway.core.manifest import InputSpec, Part
from gateway.core.outputs import FullOutputs, PartOutputs, VerdictOutputs, concatenated
from training.util.signatures import Progress, silent


def png(image: np.ndarray) -> bytes:
    """uint8 (H, W, C) as PNG bytes."""
    buffer = io.BytesIO()
    Image.fromarray(image[..., 0] if image.shape[2] == 1 else image).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def as_decoded(images: np.ndarray, spec: InputSpec) -> np.ndarray:
    """uint8 (N, H, W, C) encoded as PNG and taken through the gateway's decoder: float32 (N, C, H, W)."""
    return to_pixels(np.stack([decode_image(png(image), spec) for image in images]))


@overload
def run_images(
    engine: Engine,
    images: np.ndarray,
    spec: InputSpec,
    *,
    masks: np.ndarray | None = ...,
    part: Literal["full"] = ...,
    batch: int = ...,
    progress: Progress = ...,
) -> FullOutputs: ...
@overload
def run_images(
    engine: Engine,
    images: np.ndarray,
    spec: InputSpec,
    *,
    masks: np.ndarray | None = ...,
    part: Literal["verdict"],
    batch: int = ...,
    progress: Progress = ...,
) -> VerdictOutputs: ...
def run_images(
    engine: Engine,
    images: np.ndarray,
    spec: InputSpec,
    *,
    masks: np.ndarray | None = None,
    part: Part = "full",
    batch: int = 64,
    progress: Progress = silent,
) -> PartOutputs:
    """Graph outputs of uint8 images (N, H, W, C), decoded as the gateway decodes them, without `masks` (N, H, W)."""
    return concatenated(list(_run(engine, images, spec, masks, part, batch, progress)))


def run_batches(
    engine: Engine, images: np.ndarray, spec: InputSpec, *, batch: int = 64, progress: Progress = silent
) -> Iterator[VerdictOutputs]:
    """Outputs of the part `verdict`, batch after batch: those of many images would not fit into memory together."""
    for outputs in _run(engine, images, spec, None, "verdict", batch, progress):
        assert isinstance(outputs, VerdictOutputs)
        yield outputs


def _run(
    engine: Engine,
    images: np.ndarray,
    spec: InputSpec,
    masks: np.ndarray | None,
    part: Part,
    batch: int,
    progress: Progress,
) -> Iterator[PartOutputs]:
    for first in range(0, len(images), batch):
        hidden = None if masks is None else masks[first : first + batch]
        yield engine.run(as_decoded(images[first : first + batch], spec), hidden, part=part)
        progress(min(first + batch, len(images)), len(images))


def batches(array: np.ndarray, size: int) -> Iterator[np.ndarray]:
    for i in range(0, len(array), size):
        yield array[i : i + size]


def to_uint8(pixels: np.ndarray) -> np.ndarray:
    """float (N, C, H, W) in [0, 1] rounded to the uint8 (N, H, W, C) that a file can carry."""
    return np.ascontiguousarray((pixels * 255).round().clip(0, 255).astype(np.uint8).transpose(0, 2, 3, 1))
