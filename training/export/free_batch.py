"""A graph for any batch out of two that were traced for batches of a fixed size.

Traced with a batch that is a symbol, a network that reshapes it (windows of attention: 64 N of them, whose number is
divided by 64 again) spends its time in simplifying such terms. Two traces with numbers are quick; what differs between
them is linear in the batch.
"""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from training.errors import ExportError


def with_free_batch(first: GraphModule, second: GraphModule, sizes: tuple[int, int]) -> GraphModule:
    """`first`, traced with a batch of `sizes[0]`, for any batch; `second` is the same traced with `sizes[1]`.

    Changes `first`. Raises `ExportError` if the two differ in more than numbers that are linear in the batch.
    """
    for traced in (first, second):
        traced.graph.eliminate_dead_code()  # such as gradients of weights, which are means over the batch
    graph, pairs = first.graph, list(zip(first.graph.nodes, second.graph.nodes, strict=False))
    if len(first.graph.nodes) != len(second.graph.nodes):
        raise ExportError("the network computes something else for another number of images")
    inputs = [node for node in graph.nodes if node.op == "placeholder"]
    with graph.inserting_after(inputs[-1]):
        count = graph.call_function(torch.ops.aten.sym_size.int, (inputs[0], 0))
    merged = _Merged(graph, count, sizes)
    for mine, other in pairs:
        if mine.op != other.op or (mine.op == "call_function" and mine.target != other.target):
            raise ExportError("the network computes something else for another number of images")
        if mine.op == "get_attr":
            _check_constant(getattr(first, str(mine.target)), getattr(second, str(other.target)))
        elif mine.op == "call_function":
            mine.args = merged.of(mine.args, other.args)
            mine.kwargs = merged.of(mine.kwargs, other.kwargs)
    if not count.users:
        graph.erase_node(count)
    graph.lint()
    first.recompile()
    return first


class _Merged:
    """Arguments of both graphs as those of one."""

    def __init__(self, graph: torch.fx.Graph, count: Node, sizes: tuple[int, int]) -> None:
        self.graph, self.count, self.sizes = graph, count, sizes
        self.last = count
        self.known: dict[tuple[int, int], Node] = {(1, 0): count}

    def of(self, mine: Any, other: Any) -> Any:
        if isinstance(mine, tuple | list):
            return type(mine)(self.of(a, b) for a, b in zip(mine, other, strict=True))
        if isinstance(mine, dict):
            return {name: self.of(mine[name], other[name]) for name in mine}
        if isinstance(mine, Node) or mine == other:
            return mine
        if not isinstance(mine, int) or not isinstance(other, int):
            raise ExportError(f"the network computes with {mine} for {self.sizes[0]} images and {other} for another")
        times, rest = divmod(other - mine, self.sizes[1] - self.sizes[0])
        if rest:
            raise ExportError("a size in the network is not linear in the number of images")
        return self._linear(times, mine - times * self.sizes[0])

    def _linear(self, times: int, plus: int) -> Node:
        """The node of times N + plus."""
        if (times, plus) not in self.known:
            made = self.count if times == 1 else self._add(operator.mul, self.count, times)
            self.known[times, plus] = self._add(operator.add, made, plus) if plus else made
        return self.known[times, plus]

    def _add(self, function: Any, node: Node, number: int) -> Node:
        with self.graph.inserting_after(self.last):
            self.last = self.graph.call_function(function, (node, number))
        return self.last


def _check_constant(mine: object, other: object) -> None:
    if isinstance(mine, Tensor) and isinstance(other, Tensor) and not torch.equal(mine, other):
        raise ExportError("a constant of the network depends on the number of images")
