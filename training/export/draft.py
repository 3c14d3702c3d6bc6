"""A graph that is being rewritten: shapes, constants and readers by name, and replacing of nodes in place."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from training.export.parts import reads

Shape = tuple[int | str | None, ...]
Swaps = dict[str, list[onnx.NodeProto]]

# What turns weights into weights; the value of such a node is known as soon as those of its inputs are.
RESHAPING = {"Slice", "Transpose", "Reshape", "Unsqueeze", "Squeeze", "Identity"}


class Draft:
    """`model` (changed in place) with what a rewrite asks about its tensors.

    `shapes` has ints, symbols of the dynamic axes, and None for what inference cannot tell; `kinds` the element types.
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        self.model = model
        self.graph = model.graph
        self.changes = 0
        self._constants = {tensor.name: tensor for tensor in self.graph.initializer}
        self._pending: list[onnx.TensorProto] = []
        self._values: dict[str, np.ndarray] = {}
        self._read()

    def _read(self) -> None:
        inferred = onnx.shape_inference.infer_shapes(self.model, data_prop=True).graph
        self.shapes: dict[str, Shape] = {tensor.name: tuple(tensor.dims) for tensor in self.graph.initializer}
        self.kinds: dict[str, int] = {tensor.name: tensor.data_type for tensor in self.graph.initializer}
        for value in [*inferred.input, *inferred.value_info, *inferred.output]:
            tensor = value.type.tensor_type
            self.kinds[value.name] = tensor.elem_type
            if tensor.HasField("shape"):
                dims = tensor.shape.dim
                self.shapes[value.name] = tuple(
                    d.dim_param or (d.dim_value if d.HasField("dim_value") else None) for d in dims
                )
        self.outputs = {value.name for value in self.graph.output}
        self.made_by = {output: node for node in self.graph.node for output in node.output}
        self.readers = Counter(name for node in self.graph.node for name in reads(node))
        self.readers.update(self.outputs)
        self._inferred = inferred.value_info

    def shape(self, name: str) -> Shape | None:
        """Shape of a tensor if every axis is a number or a symbol, else None."""
        shape = self.shapes.get(name)
        return None if shape is None or None in shape else shape

    def image(self, name: str) -> tuple[int, int, int] | None:
        """(channels, height, width) of a tensor (N, C, H, W) in which all but the batch are numbers, else None."""
        shape = self.shape(name)
        if shape is None or len(shape) != 4:
            return None
        channels, height, width = shape[1:]
        if isinstance(channels, int) and isinstance(height, int) and isinstance(width, int):
            return channels, height, width
        return None

    def scalar(self, name: str) -> np.ndarray | None:
        """A constant of one entry as an array without axes, else None."""
        value = self.value(name) if name else None
        return value.reshape(()) if value is not None and value.size == 1 else None

    def maker(self, name: str, kind: str) -> onnx.NodeProto | None:
        """The node that makes `name` if it is of this operator."""
        node = self.made_by.get(name)
        return node if node is not None and node.op_type == kind else None

    def value(self, name: str) -> np.ndarray | None:
        """Content of a constant: an initializer, a `Constant`, or one of them reshaped, sliced or transposed."""
        if name in self._values:
            return self._values[name]
        node = self.made_by.get(name)
        found: np.ndarray | None = None
        if name in self._constants:
            found = numpy_helper.to_array(self._constants[name])
        elif node is not None and node.op_type in RESHAPING | {"Constant"}:
            feeds = {key: self.value(key) for key in node.input if key}
            if all(content is not None for content in feeds.values()):
                (found,) = map(np.asarray, ReferenceEvaluator(node).run(None, feeds))
        if found is not None:
            self._values[name] = found
        return found

    def constant(self, name: str, content: np.ndarray) -> str:
        """Name of an initializer, new or asked for before; it enters the graph with the next replacement."""
        if name not in self._constants:
            self._constants[name] = numpy_helper.from_array(np.ascontiguousarray(content), name)
            self._pending.append(self._constants[name])
        return name

    def replace(self, swaps: Swaps) -> None:
        """Put new nodes where the node with that first output stood; counts as one change each."""
        if not swaps:
            return
        nodes = [new for node in self.graph.node for new in swaps.get(node.output[0], [node])]
        copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
        del self.graph.node[:]
        self.graph.node.extend(copies)
        self.graph.initializer.extend(self._pending)
        self._pending = []
        self.changes += len(swaps)
        self._read()

    def finish(self) -> None:
        """Drop what nobody reads any more, and write down the shapes: ONNX Runtime relies on them for its layouts."""
        while True:
            kept = [node for node in self.graph.node if any(self.readers[output] for output in node.output)]
            if len(kept) == len(self.graph.node):
                break
            copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in kept]
            del self.graph.node[:]
            self.graph.node.extend(copies)
            self._read()
        for tensor in [tensor for tensor in self.graph.initializer if not self.readers[tensor.name]]:
            self.graph.initializer.remove(tensor)
        values = [value for value in self._inferred if value.name in self.made_by and value.name not in self.outputs]
        del self.graph.value_info[:]
        self.graph.value_info.extend(values)


def attribute(node: onnx.NodeProto, name: str, default: Any) -> Any:
    """Value of an attribute, lists as lists, or `default` where the node leaves it out."""
    found = next((a for a in node.attribute if a.name == name), None)
    return default if found is None else helper.get_attribute_value(found)


def plain(node: onnx.NodeProto, stride: int = 1) -> bool:
    """Whether a convolution or pooling has this stride on both axes, no dilation, and its padding said in numbers."""
    moves, gaps = attribute(node, "strides", [1]), attribute(node, "dilations", [1])
    return set(moves) == {stride} and set(gaps) == {1} and attribute(node, "auto_pad", b"NOTSET") == b"NOTSET"


def make(kind: str, inputs: Sequence[str], output: str, **attributes: Any) -> onnx.NodeProto:
    """A node with one output, named after it."""
    return helper.make_node(kind, list(inputs), [output], name=output, **attributes)


def _size(dim: onnx.TensorShapeProto.Dimension) -> int | str | None:
    return dim.dim_param or (dim.dim_value if dim.HasField("dim_value") else None)
