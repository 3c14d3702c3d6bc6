"""Weights that float16 holds exactly are stored in it, half as large, and cast to float32 as a session opens.

Nothing is rounded here: networks whose weights were rounded before (`studies.lite0_weights`) gain by it, others stay
as they are. ONNX Runtime folds the casts of constants, so that what runs is the same.
"""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
from onnx import numpy_helper

from training.export.draft import make

STORED = "/stored_in_half"
_PIECE = 1 << 20  # entries that are looked at at once


def exact_in_half(array: np.ndarray) -> bool:
    """Whether float16 holds every value of a float32 array."""
    if array.dtype != np.float32:
        return False
    flat = array.reshape(-1)
    with np.errstate(over="ignore"):
        return all(
            np.array_equal(piece.astype(np.float16).astype(np.float32), piece)
            for piece in (flat[at : at + _PIECE] for at in range(0, max(1, flat.size), _PIECE))
        )


def pack(model: ir.Model, *, smallest: int) -> None:
    """Store the float32 initializers of at least `smallest` bytes that float16 holds exactly in float16, in place."""
    graph, casts = model.graph, list[ir.Node]()
    weights = list(graph.initializers.values())
    graph.initializers.clear()
    for value in weights:
        tensor = value.const_value
        assert tensor is not None
        if tensor.dtype == ir.DataType.FLOAT and tensor.nbytes >= smallest and exact_in_half(tensor.numpy()):
            name = f"{value.name}{STORED}"
            half = ir.val(name, const_value=ir.tensor(tensor.numpy().astype(np.float16), name=name))
            cast = make("Cast", [half], f"{value.name}/cast", to=ir.DataType.FLOAT)
            value.replace_all_uses_with(cast.outputs[0])
            cast.outputs[0].name = value.name
            casts.append(cast)
            graph.register_initializer(half)
        else:
            graph.register_initializer(value)
    if casts:
        graph.insert_before(graph[0], casts)


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
