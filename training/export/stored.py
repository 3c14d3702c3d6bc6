"""Weights that float16 holds exactly are stored in it, half as large, and cast to float32 as a session opens.

Nothing is rounded here: networks whose weights were rounded before (`studies.lite0_weights`) gain by it, others stay
as they are. ONNX Runtime folds the casts of constants, so that what runs is the same.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

STORED = "/stored_in_half"


def exact_in_half(array: np.ndarray) -> bool:
    """Whether float16 holds every value of a float32 array."""
    if array.dtype != np.float32:
        return False
    with np.errstate(over="ignore"):
        return bool(np.array_equal(array.astype(np.float16).astype(np.float32), array))


def pack(model: onnx.ModelProto, *, smallest: int) -> None:
    """Store the float32 initializers of at least `smallest` bytes that float16 holds exactly in float16, in place."""
    casts = []
    for tensor in model.graph.initializer:
        if tensor.data_type != TensorProto.FLOAT or len(tensor.raw_data) < smallest:
            continue
        array = numpy_helper.to_array(tensor)
        if exact_in_half(array):
            name = tensor.name
            tensor.CopyFrom(numpy_helper.from_array(array.astype(np.float16), name + STORED))
            casts.append(helper.make_node("Cast", [name + STORED], [name], name=name + "/cast", to=TensorProto.FLOAT))
    nodes = [*casts, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)


def unpack(model: onnx.ModelProto) -> onnx.ModelProto:
    """`model`, changed in place, with every weight in float32 under the name that its readers use."""
    for tensor in model.graph.initializer:
        if tensor.name.endswith(STORED):
            array = numpy_helper.to_array(tensor).astype(np.float32)
            tensor.CopyFrom(numpy_helper.from_array(array, tensor.name.removesuffix(STORED)))
    nodes = [node for node in model.graph.node if not (node.op_type == "Cast" and node.input[0].endswith(STORED))]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    return model
