"""The graph of an ONNX file without its weights, which a bundle keeps to make the architecture again."""

from __future__ import annotations

from math import prod
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, external_data_helper

REMOVED = "removed"  # the place of weights that a kept graph has not: they are loaded from the bundle's networks
SMALLEST = 1024  # numbers; smaller tensors stay, as shapes are computed from them


def without_weights(path: Path, out: Path) -> None:
    """Write the graph in `path` to `out`; its larger weights are left out."""
    model = onnx.load(str(path))
    for tensor in model.graph.initializer:
        if prod(tensor.dims) < SMALLEST or tensor.data_type not in (TensorProto.FLOAT, TensorProto.FLOAT16):
            continue
        for field in ("raw_data", "float_data", "int32_data", "external_data"):
            tensor.ClearField(field)
        tensor.data_location = TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value=REMOVED)
    out.write_bytes(model.SerializeToString(deterministic=True))


def filled(model: onnx.ModelProto, folder: Path) -> bool:
    """Put random numbers where weights were removed, and load those that lie beside the file; whether some were."""
    removed = False
    for tensor in model.graph.initializer:
        if any(entry.key == "location" and entry.value == REMOVED for entry in tensor.external_data):
            removed = True
            _randomise(tensor)
    external_data_helper.load_external_data_for_model(model, str(folder))
    return removed


def _randomise(tensor: TensorProto) -> None:
    array = np.random.default_rng(len(tensor.name)).normal(0, 0.05, tuple(tensor.dims)).astype(np.float32)
    kind = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
    tensor.ClearField("external_data")
    tensor.data_location = TensorProto.DEFAULT
    tensor.raw_data = array.astype(kind).tobytes()
