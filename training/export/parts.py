"""The parts of a defence graph as graphs of their own, with their larger weights in one shared file.

Optional work inside one graph (an `If`) costs more than it saves: ONNX Runtime's blocked layout of convolutions ends
where a branch begins. Needs no torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import onnx

from gateway.core.manifest import PART_FILES, WEIGHTS, GraphSpec, Part, Precision, variant_file

# Smaller tensors (shapes, axes, scalars) stay in the graphs: ONNX Runtime wants them while it infers shapes.
SHARED_BYTES = 1024
_ALIGNMENT = 64
DTYPES: dict[int, str] = {onnx.TensorProto.FLOAT: "float32", onnx.TensorProto.FLOAT16: "float16"}
_VERDICT = (
    "logits",
    "companion_logits",
    "roi",
    "roa",
    "roa_score",
    "neutral_pixels",
    "layer_deviation",
    "scores",
)
OUTPUTS: dict[Part, tuple[str, ...]] = {
    "screen": ("logits", "companion_logits", "screen_scores"),
    "verdict": _VERDICT,
    "full": (*_VERDICT, "saliency"),
}


def split_parts(model: onnx.ModelProto) -> dict[Part, onnx.ModelProto]:
    """The parts of an exported graph; `screen` reads the pixels as they came and only where `screen_scores` exist."""
    names = [output.name for output in model.graph.output]
    parts: dict[Part, onnx.ModelProto] = {}
    for part, outputs in OUTPUTS.items():
        wanted = [name for name in names if name in outputs]
        if part != "screen":
            parts[part] = cut_masked(model, wanted)
        elif "screen_scores" in names:
            parts[part] = cut(model, wanted)
    return parts


def write_parts(parts: Mapping[Part, onnx.ModelProto], folder: Path, precision: Precision = "fp32") -> None:
    """Write each part's file and their weights' one; a tensor lies there once, whichever parts read it.

    Raises `ValueError` if a name means different weights in two parts.
    """
    shared = variant_file(WEIGHTS, precision)
    weights, places = bytearray(), dict[str, tuple[int, bytes]]()
    for part, whole in parts.items():
        model = onnx.ModelProto.FromString(whole.SerializeToString())
        for tensor in model.graph.initializer:
            content = tensor.raw_data
            if len(content) < SHARED_BYTES:
                continue
            if tensor.name not in places:
                weights.extend(bytes(-len(weights) % _ALIGNMENT))
                places[tensor.name] = (len(weights), content)
                weights.extend(content)
            offset, known = places[tensor.name]
            if known != content:
                raise ValueError(f"tensor {tensor.name!r} differs between parts")
            del tensor.external_data[:]
            tensor.ClearField("raw_data")
            tensor.data_location = onnx.TensorProto.EXTERNAL
            for key, value in (("location", shared), ("offset", offset), ("length", len(content))):
                tensor.external_data.add(key=key, value=str(value))
        (folder / variant_file(PART_FILES[part], precision)).write_bytes(model.SerializeToString(deterministic=True))
    (folder / shared).write_bytes(bytes(weights))


def graph_specs(parts: Mapping[Part, onnx.ModelProto], precision: Precision = "fp32") -> dict[Part, GraphSpec]:
    """The parts as the manifest describes them."""
    specs = {}
    for part, model in parts.items():
        inputs, outputs = tensor_specs(model)
        file = variant_file(PART_FILES[part], precision)
        specs[part] = GraphSpec.model_validate({"file": file, "inputs": inputs, "outputs": outputs})
    return specs


def tensor_specs(model: onnx.ModelProto) -> tuple[list[dict[str, object]], list[dict[str, object]]]:
    """Inputs and outputs as the manifest describes them: name, dtype, shape with `N` for the batch."""

    def spec(value: onnx.ValueInfoProto) -> dict[str, object]:
        tensor = value.type.tensor_type
        shape = [d.dim_param or d.dim_value for d in tensor.shape.dim]
        return {"name": value.name, "dtype": DTYPES[tensor.elem_type], "shape": shape}

    return [spec(v) for v in model.graph.input], [spec(v) for v in model.graph.output]


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
    part.graph.input.append(next(value for value in model.graph.input if value.name == "pixels"))
    onnx.checker.check_model(part)
    return part


def cut_masked(model: onnx.ModelProto, outputs: list[str]) -> onnx.ModelProto:
    """The part of `model` from its inputs `pixels` and `mask` to `outputs`."""
    part = extracted(model, ["pixels", "mask"], outputs)
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
