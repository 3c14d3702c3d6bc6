"""The parts of a defence graph as graphs of their own, with their larger weights in one shared file.

Optional work inside one graph (an `If`) costs more than it saves: ONNX Runtime's blocked layout of convolutions ends
where a branch begins. Needs no torch.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import IO

import numpy as np
import onnx
import onnx_ir as ir

from gateway.core.manifest import PART_FILES, WEIGHTS, GraphSpec, Part, Precision, variant_file
from training.export.draft import check
from training.export.stored import pack

# Smaller tensors (shapes, axes, scalars) stay in the graphs: ONNX Runtime wants them while it infers shapes.
SHARED_BYTES = 1024
PACKED_BYTES = 4096  # below it are filters and shapes, which would gain nothing
_ALIGNMENT = 64
DTYPES = {ir.DataType.FLOAT: "float32", ir.DataType.FLOAT16: "float16"}
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


def split_parts(model: ir.Model) -> dict[Part, ir.Model]:
    """The parts of an exported graph; `screen` reads the pixels as they came and only where `screen_scores` exist.

    Their weights are those of `model`, which is left as it is.
    """
    names = [str(output.name) for output in model.graph.outputs]
    parts: dict[Part, ir.Model] = {}
    for part, outputs in OUTPUTS.items():
        wanted = [name for name in names if name in outputs]
        if part != "screen":
            parts[part] = _extracted(model, ["pixels", "mask"], wanted)
        elif "screen_scores" in names:
            parts[part] = _from_inpainted(model, wanted)
    return parts


def write_parts(parts: Mapping[Part, ir.Model], folder: Path, precision: Precision = "fp32") -> None:
    """Write each part's file and their weights' one; a tensor lies there once, whichever parts read it.

    Weights that float16 holds exactly take half the room (`training.export.stored`). They are written one after the
    other, so that no copy of all of them is made. Raises `ValueError` if a name means different weights in two parts.
    """
    shared = variant_file(WEIGHTS, precision)
    with (folder / shared).open("w+b") as file:
        weights = _Weights(file, shared)
        for part, whole in parts.items():
            model = whole.clone()
            pack(model, smallest=PACKED_BYTES)
            for name, value in model.graph.initializers.items():
                tensor = value.const_value
                if tensor is not None and tensor.nbytes >= SHARED_BYTES:
                    value.const_value = weights.put(name, tensor)
            made = _proto(model)
            (folder / variant_file(PART_FILES[part], precision)).write_bytes(made.SerializeToString(deterministic=True))


class _Weights:
    """The file of weights that is being written, and where in it each of them lies."""

    def __init__(self, file: IO[bytes], location: str) -> None:
        self._file, self._location = file, location
        self._places: dict[str, tuple[int, bytes]] = {}

    def put(self, name: str, tensor: ir.TensorProtocol) -> ir.ExternalTensor:
        """The place of a weight, which is written unless it is there."""
        content = memoryview(np.ascontiguousarray(tensor.numpy()).reshape(-1).view(np.uint8))
        digest = hashlib.sha256(content).digest()
        if name not in self._places:
            self._file.write(bytes(-self._file.tell() % _ALIGNMENT))
            self._places[name] = (self._file.tell(), digest)
            self._file.write(content)
        offset, known = self._places[name]
        if known != digest:
            raise ValueError(f"tensor {name!r} differs between parts")
        return ir.ExternalTensor(self._location, offset, len(content), tensor.dtype, shape=tensor.shape, name=name)


def graph_specs(parts: Mapping[Part, ir.Model], precision: Precision = "fp32") -> dict[Part, GraphSpec]:
    """The parts as the manifest describes them."""
    specs = {}
    for part, model in parts.items():
        inputs, outputs = tensor_specs(model)
        file = variant_file(PART_FILES[part], precision)
        specs[part] = GraphSpec.model_validate({"file": file, "inputs": inputs, "outputs": outputs})
    return specs


def tensor_specs(model: ir.Model) -> tuple[list[dict[str, object]], list[dict[str, object]]]:
    """Inputs and outputs as the manifest describes them: name, dtype, shape with `N` for the batch."""

    def spec(value: ir.Value) -> dict[str, object]:
        assert value.shape is not None
        assert value.dtype is not None
        shape = [dim if isinstance(dim, int) else dim.value for dim in value.shape]
        return {"name": value.name, "dtype": DTYPES[value.dtype], "shape": shape}

    return [spec(value) for value in model.graph.inputs], [spec(value) for value in model.graph.outputs]


def cut(model: onnx.ModelProto, outputs: list[str]) -> onnx.ModelProto:
    """The part of `model` from the inpainted image, renamed `pixels`, to `outputs`."""
    return _proto(_from_inpainted(ir.from_proto(model), outputs))


def cut_masked(model: onnx.ModelProto, outputs: list[str]) -> onnx.ModelProto:
    """The part of `model` from its inputs `pixels` and `mask` to `outputs`."""
    return _proto(_extracted(ir.from_proto(model), ["pixels", "mask"], outputs))


def _from_inpainted(model: ir.Model, outputs: list[str]) -> ir.Model:
    source = str(_inpainted(model.graph).name)
    part = _extracted(model, list(dict.fromkeys(["pixels", source])), outputs)
    if len(part.graph.inputs) > 1:
        part.graph.inputs[1].replace_all_uses_with(part.graph.inputs[0])
        del part.graph.inputs[1]
    return part


def _extracted(model: ir.Model, inputs: list[str], outputs: list[str]) -> ir.Model:
    """What leads from `inputs` to `outputs`, with its weights in the model's order."""
    part = ir.convenience.extract(model.graph, inputs, outputs)
    weights = [part.initializers[name] for name in model.graph.initializers if name in part.initializers]
    part.initializers.clear()
    for weight in weights:
        part.register_initializer(weight)
    made = ir.Model(part, ir_version=model.ir_version, producer_name=model.producer_name)
    check(made)
    return made


def _proto(part: ir.Model) -> onnx.ModelProto:
    """A part as it is written: without shapes of intermediate values, which ONNX Runtime infers from the inputs."""
    made = ir.to_proto(part)
    del made.graph.value_info[:]
    return made


def _inpainted(graph: ir.Graph) -> ir.Value:
    """The tensor that the networks read: the output `neutral_pixels`, or what it is a copy of."""
    value = next(output for output in graph.outputs if output.name == "neutral_pixels")
    while (node := value.producer()) is not None and node.op_type == "Identity" and node.inputs[0] is not None:
        value = node.inputs[0]
    return value
