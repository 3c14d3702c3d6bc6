"""Reading an ONNX file: weights in float32, functions inlined, attributes as Python values."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, numpy_helper
from onnx.inliner import inline_local_functions
from torch import Tensor

from training.errors import TrainingError
from training.models.onnx_graph.kept import filled

OLDEST, NEWEST = 7, 26  # operator sets that the table of operators is written for
INTEGERS = (TensorProto.UINT8, TensorProto.INT32, TensorProto.INT64)
TAKEN = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE, *INTEGERS)
HALVES = (TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE)
STOCK = ("", "ai.onnx")
FORM = ("Identity", "Cast", "Flatten", "Reshape", "Squeeze", "Unsqueeze")  # change no number, but for its precision


@dataclass(frozen=True)
class Node:
    """One operator of the graph; `inputs` holds "" where an optional one is left out.

    `attributes` also hold the operator set, `opset`, and how many `outputs` there are.
    """

    kind: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Any]


@dataclass
class OnnxFile:
    """A classifier as its file describes it: one image input, one output that is read, constants in float32.

    `shape` is the input's, None where an axis is free; `layout` is NCHW or NHWC; `integer` inputs are bytes.
    """

    nodes: list[Node]
    constants: dict[str, Tensor]
    input: str
    output: str
    softmax: bool  # of the output, in the file: `output` is what comes before it
    shape: tuple[int | None, ...]
    layout: str
    integer: bool
    half: bool
    bare: bool  # without its weights
    metadata: dict[str, str] = field(default_factory=dict)

    @property
    def batch(self) -> int | None:
        """The batch that the file is fixed to, None if it is free."""
        return self.shape[0]

    @property
    def channels(self) -> int:
        return self.shape[1 if self.layout == "NCHW" else 3] or 3

    @property
    def side(self) -> int | None:
        """Side of the square images that the file is fixed to, None if it takes any."""
        return self.shape[2]


def read_onnx(path: Path) -> OnnxFile:
    """The graph in `path`; `TrainingError` if it is none, or not one of images."""
    model, bare = _loaded(path)
    graph = model.graph
    opset = next((entry.version for entry in model.opset_import if entry.domain in STOCK), 1)
    if not OLDEST <= opset <= NEWEST:
        raise TrainingError(f"{path}: operator set {opset}; {OLDEST} to {NEWEST} are read: export it again")
    given = {tensor.name for tensor in graph.initializer}
    inputs = [value for value in graph.input if value.name not in given]
    if len(inputs) != 1:
        names = ", ".join(value.name for value in inputs) or "none"
        raise TrainingError(f"{path}: has the inputs {names}; a classifier takes one, the images")
    shape, layout, integer = _image(path, inputs[0])
    nodes = [_node(number, node, opset) for number, node in enumerate(graph.node)]
    output, softmax = _logits(nodes, graph.output[0].name)
    needed = _needed(nodes, output)
    nodes = [node for node in nodes if node.name in needed]
    read = {name for node in nodes for name in node.inputs}
    return OnnxFile(
        nodes,
        {tensor.name: _constant(path, tensor) for tensor in graph.initializer if tensor.name in read},
        input=inputs[0].name,
        output=output,
        softmax=softmax,
        shape=shape,
        layout=layout,
        integer=integer,
        half=any(tensor.data_type == TensorProto.FLOAT16 for tensor in graph.initializer),
        bare=bare,
        metadata={entry.key: entry.value for entry in model.metadata_props},
    )


def _loaded(path: Path) -> tuple[onnx.ModelProto, bool]:
    """The model, and whether its weights were removed (`kept.py`)."""
    if not path.is_file():
        raise TrainingError(f"{path}: no such file")
    try:
        model = onnx.load(str(path), load_external_data=False)
        removed = filled(model, path.parent)
        return (inline_local_functions(model) if model.functions else model), removed
    except Exception as error:  # noqa: BLE001  # protobuf's, onnx's and the system's
        reason = " ".join(str(error).split())[:200]
        raise TrainingError(f"{path}: not a readable ONNX file ({reason})") from None


def _image(path: Path, value: onnx.ValueInfoProto) -> tuple[tuple[int | None, ...], str, bool]:
    """Shape, layout and whether bytes are taken of the input `value`."""
    tensor = value.type.tensor_type
    shape = tuple(
        dim.dim_value if dim.HasField("dim_value") and dim.dim_value > 0 else None for dim in tensor.shape.dim
    )
    if len(shape) != 4:
        raise TrainingError(f"{path}: the input {value.name} has the shape {list(shape)}; images have four axes")
    last = shape[3] in (1, 3) and shape[1] not in (1, 3)
    height, width = (shape[1], shape[2]) if last else (shape[2], shape[3])
    if height != width:
        raise TrainingError(f"{path}: takes images of {height} x {width}; only square ones can be wrapped")
    if tensor.elem_type not in TAKEN:
        kind = TensorProto.DataType.Name(tensor.elem_type)
        raise TrainingError(f"{path}: the input {value.name} is {kind}; images are floats, or integers of 0 to 255")
    return shape, "NHWC" if last else "NCHW", tensor.elem_type in INTEGERS


def _logits(nodes: list[Node], output: str) -> tuple[str, bool]:
    """The tensor that holds the logits, and whether the file gives their softmax, in whatever shape and precision."""
    makers = {name: node for node in nodes for name in node.outputs}
    last = makers.get(output)
    while last is not None and last.kind in FORM:
        last = makers.get(last.inputs[0])
    return (output, False) if last is None or last.kind != "Softmax" else (last.inputs[0], True)


def _needed(nodes: list[Node], output: str) -> set[str]:
    """Names of the nodes that lead to `output`."""
    wanted, found = {output}, set()
    for node in reversed(nodes):
        if wanted.intersection(node.outputs):
            found.add(node.name)
            wanted.update(node.inputs)
    return found


def _node(number: int, node: onnx.NodeProto, opset: int) -> Node:
    kind = node.op_type if node.domain in STOCK else f"{node.domain}.{node.op_type}"
    name = re.sub(r"\W+", "_", node.name or node.output[0]).strip("_") or f"{kind}_{number}"
    attributes = {entry.name: _attribute(entry) for entry in node.attribute}
    attributes |= {"opset": opset, "outputs": len(node.output)}
    return Node(kind, f"n{number}_{name}"[:80], tuple(node.input), tuple(node.output), attributes)


def _attribute(entry: onnx.AttributeProto) -> Any:
    if entry.type in (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS):
        return None  # of If and Loop, which no table has
    content = onnx.helper.get_attribute_value(entry)
    if isinstance(content, TensorProto):
        try:
            return _tensor(content)
        except TypeError:
            return None  # such as text; an operator that reads it is refused
    if isinstance(content, (onnx.SparseTensorProto, onnx.TypeProto)):
        return None
    if isinstance(content, bytes):
        return content.decode("utf-8", "replace")
    return list(content) if entry.type not in (entry.INT, entry.FLOAT, entry.STRING) else content


def _constant(path: Path, tensor: TensorProto) -> Tensor:
    try:
        return _tensor(tensor)
    except TypeError:
        kind = TensorProto.DataType.Name(tensor.data_type)
        raise TrainingError(f"{path}: the constant {tensor.name} is {kind}, which is not read") from None


def _tensor(tensor: TensorProto) -> Tensor:
    """A constant; halves and doubles become float32."""
    array = np.array(numpy_helper.to_array(tensor))
    if tensor.data_type in HALVES:
        array = array.astype(np.float32)
    return torch.from_numpy(array)
