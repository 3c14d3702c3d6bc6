"""Parts of a defence graph as graphs of their own, and the multiply-accumulates that a graph runs.

Everything after inpainting reads the tensor that the output `neutral_pixels` names, so a part is cut out between that
tensor and an output: same weights, same operators, nothing else.
"""

from __future__ import annotations

from math import prod

import onnx

# What a part is cut to (its outputs); the input of each is the image after inpainting.
STAGES = {
    "answering forward": ["logits"],
    "companion forward": ["companion_logits"],
    "forward + saliency": ["logits", "saliency"],
    "forward + region of attack": ["logits", "roa", "roa_score"],
    "forward + views + companion + scores": ["logits", "scores", "layer_deviation"],
}
INPAINTING = "inpainting"


def inpainted(model: onnx.ModelProto) -> str:
    """Name of the tensor that the networks read: the output `neutral_pixels`, or what it is a copy of."""
    made_by = {output: node for node in model.graph.node for output in node.output}
    name = "neutral_pixels"
    while made_by[name].op_type == "Identity":
        name = made_by[name].input[0]
    return name


def cut(model: onnx.ModelProto, outputs: list[str]) -> onnx.ModelProto:
    """The part of `model` from the inpainted image, renamed `pixels`, to `outputs`."""
    source = inpainted(model)
    part = extracted(model, [source], outputs)
    for node in part.graph.node:
        node.input[:] = ["pixels" if name == source else name for name in node.input]
    pixels = next(value for value in model.graph.input if value.name == "pixels")
    del part.graph.input[:]
    part.graph.input.append(pixels)
    onnx.checker.check_model(part)
    return part


def inpainting_part(model: onnx.ModelProto) -> onnx.ModelProto:
    """The part of `model` from its inputs to `neutral_pixels`."""
    part = extracted(model, ["pixels", "mask"], ["neutral_pixels"])
    part.graph.input.extend(value for value in model.graph.input if value.name in ("pixels", "mask"))
    onnx.checker.check_model(part)
    return part


def extracted(model: onnx.ModelProto, inputs: list[str], outputs: list[str]) -> onnx.ModelProto:
    """The nodes between `inputs` and `outputs` with their weights; inputs are left to the caller to declare.

    onnx.utils.Extractor would lose what the branches of an `If` read from outside.
    """
    made_by = {output: node for node in model.graph.node for output in node.output}
    needed: set[str] = set()
    wanted = [name for name in outputs if name not in inputs]
    while wanted:
        name = wanted.pop()
        if name not in needed:
            needed.add(name)
            wanted.extend(reads(made_by[name]) - set(inputs) if name in made_by else ())
    part = onnx.ModelProto.FromString(model.SerializeToString())
    for field in (part.graph.node, part.graph.initializer, part.graph.input, part.graph.output, part.graph.value_info):
        del field[:]
    part.graph.node.extend(node for node in model.graph.node if needed & set(node.output))
    part.graph.initializer.extend(tensor for tensor in model.graph.initializer if tensor.name in needed)
    part.graph.output.extend(value for value in model.graph.output if value.name in outputs)
    return part


def reads(node: onnx.NodeProto) -> set[str]:
    """Tensors that a node needs, those that its branches take from outside included."""
    inner = {name for a in node.attribute if a.HasField("g") for n in a.g.node for name in n.input}
    return (set(node.input) | inner) - {""}


def macs(model: onnx.ModelProto, batch: int) -> int:
    """Multiply-accumulates of every Conv, ConvTranspose and Gemm at a batch size, from ONNX shape inference.

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
    return sum(_node_macs(node, shapes) for node in inferred.graph.node)


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
