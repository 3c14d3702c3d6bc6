"""The parts of a defence graph as graphs of their own, with their larger weights in one shared file.

Optional work inside one graph (an `If`) costs more than it saves: ONNX Runtime's blocked layout of convolutions ends
where a branch begins. Needs no torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import onnx
import onnx_ir as ir

from gateway.core.manifest import PART_FILES, WEIGHTS, GraphSpec, Part, Precision, variant_file
from training.export.stored import pack

# Smaller tensors (shapes, axes, scalars) stay in the graphs: ONNX Runtime wants them while it infers shapes.
SHARED_BYTES = 1024
PACKED_BYTES = 4096  # below it are filters and shapes, which would gain nothing
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

    Weights that float16 holds exactly take half the room (`training.export.stored`). Raises `ValueError` if a name
    means different weights in two parts.
    """
    shared = variant_file(WEIGHTS, precision)
    weights, places = bytearray(), dict[str, tuple[int, bytes]]()
    for part, whole in parts.items():
        model = onnx.ModelProto.FromString(whole.SerializeToString())
        pack(model, smallest=PACKED_BYTES)
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


def cut(model: onnx.ModelProto, outputs: list[str]) -> onnx.ModelProto:
    """The part of `model` from the inpainted image, renamed `pixels`, to `outputs`."""
    whole = ir.from_proto(model)
    source = str(_inpainted(whole.graph).name)
    part = _extracted(whole, list(dict.fromkeys(["pixels", source])), outputs)
    if len(part.graph.inputs) > 1:
        part.graph.inputs[1].replace_all_uses_with(part.graph.inputs[0])
        del part.graph.inputs[1]
    return _checked(part)


def cut_masked(model: onnx.ModelProto, outputs: list[str]) -> onnx.ModelProto:
    """The part of `model` from its inputs `pixels` and `mask` to `outputs`."""
    return _checked(_extracted(ir.from_proto(model), ["pixels", "mask"], outputs))


def _extracted(model: ir.Model, inputs: list[str], outputs: list[str]) -> ir.Model:
    """What leads from `inputs` to `outputs`, with its weights in the model's order."""
    part = ir.convenience.extract(model.graph, inputs, outputs)
    weights = [part.initializers[name] for name in model.graph.initializers if name in part.initializers]
    part.initializers.clear()
    for weight in weights:
        part.register_initializer(weight)
    return ir.Model(part, ir_version=model.ir_version, producer_name=model.producer_name)


def _checked(part: ir.Model) -> onnx.ModelProto:
    """A part as it is written: without shapes of intermediate values, which ONNX Runtime infers from the inputs."""
    made = ir.to_proto(part)
    del made.graph.value_info[:]
    onnx.checker.check_model(made)
    return made


def _inpainted(graph: ir.Graph) -> ir.Value:
    """The tensor that the networks read: the output `neutral_pixels`, or what it is a copy of."""
    value = next(output for output in graph.outputs if output.name == "neutral_pixels")
    while (node := value.producer()) is not None and node.op_type == "Identity" and node.inputs[0] is not None:
        value = node.inputs[0]
    return value
