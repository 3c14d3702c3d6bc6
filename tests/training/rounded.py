"""What a device that computes in float16 makes of a graph: every result is rounded to it.

ONNX Runtime on the CPU has few operators in float16. It puts casts around the others and leaves out those that meet
between two of them: nothing is rounded there, and nothing can underflow. Casts that the graph itself has are kept.
"""

from __future__ import annotations

import onnx
from onnx import TensorProto, helper, shape_inference

from training.export.draft import RESHAPING


def element_types(model: onnx.ModelProto) -> dict[str, int]:
    """Type of the entries of every tensor of the graph, by name."""
    graph = shape_inference.infer_shapes(model).graph
    values = [*graph.input, *graph.value_info, *graph.output]
    kinds = {value.name: value.type.tensor_type.elem_type for value in values}
    return kinds | {tensor.name: tensor.data_type for tensor in graph.initializer}


def rounded(model: onnx.ModelProto) -> onnx.ModelProto:
    """`model` with its float16 operators in float32, their inputs and outputs cast to float16 and back."""
    made = onnx.ModelProto.FromString(model.SerializeToString())
    kinds = element_types(model)
    nodes: list[onnx.NodeProto] = []

    def cast(source: str, target: str, kind: int) -> None:
        nodes.append(helper.make_node("Cast", [source], [target], to=kind))

    for node in model.graph.node:
        copy = onnx.NodeProto.FromString(node.SerializeToString())
        if node.op_type not in {"Cast", *RESHAPING}:
            for at, name in enumerate(node.input):
                if kinds.get(name) == TensorProto.FLOAT16:
                    copy.input[at] = f"{name}_in_{node.output[0]}"
                    cast(name, copy.input[at], TensorProto.FLOAT)
            for at, name in enumerate(node.output):
                if kinds.get(name) == TensorProto.FLOAT16:
                    copy.output[at] = f"{name}_exact"
        nodes.append(copy)
        for exact, name in zip(copy.output, node.output, strict=True):
            if exact != name:
                cast(exact, name, TensorProto.FLOAT16)
    del made.graph.node[:]
    made.graph.node.extend(nodes)
    return made
