"""Multiply-accumulates that a graph runs, from ONNX shape inference. Needs no torch."""

from __future__ import annotations

from math import prod

import onnx


def macs(model: onnx.ModelProto, batch: int, *, products: bool = False) -> int:
    """Multiply-accumulates of every Conv, ConvTranspose and Gemm at a batch size, from ONNX shape inference.

    With `products` of every MatMul as well: in transformers they are the work.

    Raises `ValueError` when a shape that is needed cannot be inferred.
    """
    fixed = onnx.ModelProto.FromString(model.SerializeToString())
    del fixed.graph.value_info[:]
    for value in fixed.graph.input:
        value.type.tensor_type.shape.dim[0].dim_value = batch
    for value in fixed.graph.output:
        value.type.tensor_type.ClearField("shape")
    inferred = onnx.shape_inference.infer_shapes(fixed, data_prop=True)
    shapes = {tensor.name: list(tensor.dims) for tensor in inferred.graph.initializer}
    for value in [*inferred.graph.input, *inferred.graph.value_info, *inferred.graph.output]:
        shapes[value.name] = [dim.dim_value for dim in value.type.tensor_type.shape.dim]
    found = sum(_node_macs(node, shapes) for node in inferred.graph.node)
    return found + (sum(_product_macs(node, shapes) for node in inferred.graph.node) if products else 0)


def _product_macs(node: onnx.NodeProto, shapes: dict[str, list[int]]) -> int:
    if node.op_type != "MatMul":
        return 0
    inputs, output = shapes.get(node.input[0], []), shapes.get(node.output[0], [])
    if not inputs or not output or 0 in [inputs[-1], *output]:
        raise ValueError(f"MatMul {node.name!r}: shapes {inputs}, {output} were not inferred")
    return prod(output) * inputs[-1]


def _node_macs(node: onnx.NodeProto, shapes: dict[str, list[int]]) -> int:
    if node.op_type not in ("Conv", "ConvTranspose", "Gemm"):
        return 0
    inputs, weight, output = (shapes.get(name, []) for name in (node.input[0], node.input[1], node.output[0]))
    if not inputs or not weight or not output or 0 in [*inputs, *weight, *output]:
        raise ValueError(f"{node.op_type} {node.name!r}: shapes {inputs}, {weight}, {output} were not inferred")
    if node.op_type == "Conv":  # weight (M, C / groups, kh, kw): once for each output entry
        return prod(output) * prod(weight[1:])
    if node.op_type == "ConvTranspose":  # weight (C, M / groups, kh, kw): once for each input entry
        return prod(inputs) * prod(weight[1:])
    transposed = any(a.name == "transA" and a.i for a in node.attribute)
    return prod(output) * (inputs[0] if transposed else inputs[1])
