"""A graph that is being rewritten: sizes and constants of its tensors, and replacing of nodes in place."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from onnx.reference import ReferenceEvaluator
from onnx_ir.passes.common import CheckerPass, RemoveUnusedNodesPass, ShapeInferencePass

Shape = tuple[int | str, ...]
Swaps = dict[ir.Node, list[ir.Node]]

# What turns weights into weights; the value of such a node is known as soon as those of its inputs are.
RESHAPING = {"Slice", "Transpose", "Reshape", "Unsqueeze", "Squeeze", "Identity"}


class Draft:
    """`model` (changed in place) with what a rewrite asks about its tensors; `changes` counts the nodes replaced."""

    def __init__(self, model: ir.Model) -> None:
        self.model = model
        self.graph = model.graph
        self.changes = 0
        self._values: dict[ir.Value, np.ndarray] = {}
        self._given = {value.name: value.shape for node in self.graph for value in node.outputs}
        self._infer()

    def _infer(self) -> None:
        """Shapes of what the nodes make, from those that came with the model.

        A symbol inferred earlier would hide what a replacement has made known since.
        """
        for node in self.graph:
            for value in node.outputs:
                if not value.is_graph_output():
                    value.shape = self._given.get(value.name)
        ShapeInferencePass(check_type=False, strict_mode=False, data_prop=True)(self.model)

    def shape(self, value: ir.Value | None) -> Shape | None:
        """Shape of a tensor if every axis is a number or a symbol, else None."""
        if value is None or value.shape is None:
            return None
        sizes = [size if isinstance(size, int) else size.value for size in value.shape]
        known = tuple(size for size in sizes if size is not None)
        return known if len(known) == len(sizes) else None

    def image(self, value: ir.Value | None) -> tuple[int, int, int] | None:
        """(channels, height, width) of a tensor (N, C, H, W) in which all but the batch are numbers, else None."""
        shape = self.shape(value)
        if shape is None or len(shape) != 4:
            return None
        channels, height, width = shape[1:]
        if isinstance(channels, int) and isinstance(height, int) and isinstance(width, int):
            return channels, height, width
        return None

    def scalar(self, value: ir.Value | None) -> np.ndarray | None:
        """A constant of one entry as an array without axes, else None."""
        content = self.value(value)
        return content.reshape(()) if content is not None and content.size == 1 else None

    def maker(self, value: ir.Value | None, kind: str) -> ir.Node | None:
        """The node that makes `value` if it is of this operator."""
        node = None if value is None else value.producer()
        return node if node is not None and node.op_type == kind else None

    def value(self, value: ir.Value | None) -> np.ndarray | None:
        """Content of a constant: an initializer, a `Constant`, or one of them reshaped, sliced or transposed."""
        if value is None or value in self._values:
            return None if value is None else self._values[value]
        node, known = value.producer(), ir.convenience.get_const_tensor(value)
        found = None if known is None else known.numpy()
        if found is None and node is not None and node.op_type in RESHAPING:
            feeds = {f"{source.name}": self.value(source) for source in node.inputs if source is not None}
            if all(content is not None for content in feeds.values()):
                (found,) = map(np.asarray, ReferenceEvaluator(ir.to_proto(node)).run(None, feeds))
        if found is not None:
            self._values[value] = found
        return found

    def constant(self, name: str, content: np.ndarray) -> ir.Value:
        """An initializer, new or asked for before."""
        if name not in self.graph.initializers:
            tensor = ir.tensor(np.ascontiguousarray(content).reshape(content.shape), name=name)
            self.graph.register_initializer(ir.val(name, const_value=tensor))
        return self.graph.initializers[name]

    def replace(self, swaps: Swaps) -> None:
        """Put new nodes, the last of which makes what it made, in a node's place; counts as one change each."""
        for node, made in swaps.items():
            made[-1].name = node.outputs[0].name
            ir.convenience.replace_nodes_and_values(self.graph, node, [node], made, node.outputs[:1], made[-1].outputs)
        self.changes += len(swaps)
        if swaps:
            self._infer()

    def finish(self) -> None:
        """Drop what nobody reads any more; shapes stay written down, as ONNX Runtime relies on them for its layouts."""
        RemoveUnusedNodesPass()(self.model)


def check(model: ir.Model, *, full: bool = False) -> None:
    """ONNX's own check of a graph (with `full` of all shapes too), without a copy of its larger weights."""
    weights = list(model.graph.initializers.values())
    CheckerPass(full_check=full)(model)
    model.graph.initializers.clear()  # the pass has put the larger ones last
    for weight in weights:
        model.graph.register_initializer(weight)


def ancestors(values: Iterable[ir.Value], *, stop: ir.Value | None = None) -> set[ir.Node]:
    """Every node that `values` depend on, not looking behind the tensor `stop`."""
    last = None if stop is None else stop.producer()
    found: set[ir.Node] = set()
    wanted = [value.producer() for value in values]
    while wanted:
        node = wanted.pop()
        if node is not None and node is not last and node not in found:
            found.add(node)
            wanted.extend(node.predecessors())
    return found


def plain(node: ir.Node, stride: int = 1) -> bool:
    """Whether a convolution or pooling has this stride on both axes, no dilation, and its padding given in numbers."""
    moves, gaps = node.attributes.get_ints("strides", [1]), node.attributes.get_ints("dilations", [1])
    return set(moves) == {stride} and set(gaps) == {1} and node.attributes.get_string("auto_pad", "NOTSET") == "NOTSET"


def make(kind: str, inputs: Sequence[ir.Value | None], output: str | None = None, **attributes: Any) -> ir.Node:
    """A node with one output, named after it; what takes another node's place gets its name there."""
    return ir.node(kind, inputs, attributes, outputs=[ir.Value(name=output)], name=output)
