"""The images in a request of the Open Inference Protocol: the one input that it may have."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from gateway.core.decode import to_image
from gateway.core.manifest import InputSpec
from gateway.errors import BadParameter
from gateway.http.routes.oip.tensors import Input


def read_images(inputs: dict[str, Input], spec: InputSpec, max_batch: int) -> Sequence[np.ndarray | bytes]:
    """The images of a request: uint8 arrays (H, W, C), or encoded files.

    FP32 pixels are rounded to 8 bits: calibration, audit trail and campaigns know no other images, and whoever searches
    with changes below half a level learns nothing. Raises `BadParameter` for inputs, shapes, datatypes, numbers or
    values that are not those of the model.
    """
    if len(inputs) != 1 or not inputs.keys() & {"pixels", "image"}:
        shown = ", ".join(name[:80] for name in inputs)
        raise BadParameter(f"inputs: send one, either pixels or image (got {shown})")
    ((name, given),) = inputs.items()
    tensor = given.tensor
    count = tensor.shape[0]
    if not 1 <= count <= max_batch:
        raise BadParameter(f"{name}: a batch has 1 to {max_batch} images (got {count})")
    height, width, channels = spec.height, spec.width, spec.channels
    expected: dict[str, list[list[int]]] = (
        {"BYTES": [[], [1]]}
        if name == "image"
        else {"UINT8": [[height, width, channels]], "FP32": [[channels, height, width]]}
    )
    if tensor.datatype not in expected:
        raise BadParameter(f"{name}: datatype must be {' or '.join(expected)} (got {tensor.datatype[:40]!r})")
    if tensor.shape[1:] not in expected[tensor.datatype]:
        wanted_shape = ["N", *expected[tensor.datatype][0]]
        raise BadParameter(f"{name}: {tensor.datatype} must have shape {wanted_shape} (got {tensor.shape})")
    if name == "image":
        return given.items()
    pixels = given.numbers()
    if tensor.datatype == "FP32":
        # Not `or` of two comparisons: NaN fails either.
        outside = ~((pixels >= 0.0) & (pixels <= 1.0)).reshape(count, -1).all(axis=1)
        if outside.any():
            raise BadParameter(f"pixels[{int(outside.argmax())}]: FP32 values must be finite and in [0, 1]")
        return [to_image(image) for image in pixels]
    return list(pixels)
