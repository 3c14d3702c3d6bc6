"""What of an ONNX graph depends on the images, what on the size of the batch alone, and what on neither.

The graph runs with two batches of different size. What does not depend on the images and is the same for both is a
constant from then on: arithmetic with shapes disappears, weights are transposed once. What differs is a number or a
shape that is linear in the batch; the rest are the steps that a network runs.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from training.errors import TrainingError
from training.models.onnx_graph.batch import batch_axis, expanded, rebatched
from training.models.onnx_graph.operators import TABLE
from training.models.onnx_graph.operators.operator import Unexpressed
from training.models.onnx_graph.read import Node, OnnxFile
from training.util.module_modes import seeded

WAY_OUT = "open the network from its code instead (torchvision:NAME, timm:NAME or nets.py:make, with --weights)"


@dataclass(frozen=True)
class OfBatch:
    """The number `times` N + `plus`, where N is how many images there are."""

    times: int
    plus: int

    def of(self, count: int) -> int:
        return self.times * count + self.plus


@dataclass(frozen=True)
class Value:
    """A tensor of the graph in both runs."""

    kind: Literal["constant", "batch", "live"]
    runs: tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Live:
    """An input of a step that another step makes."""

    name: str


@dataclass
class Step:
    """A node that runs for each batch; `inputs` are `Live`, constants, or Python numbers and lists (with `OfBatch`)."""

    node: Node
    inputs: list[Any]
    example: Tensor | None = None  # of its first input in the first run, without its content
    shapes: list[tuple[tuple[int, ...], tuple[int, ...]]] = field(default_factory=list)  # of its outputs, in both runs


def planned(file: OnnxFile, side: int, where: str) -> list[Step]:
    """The steps from images of `side` pixels to logits; `TrainingError` names the operator that is not read."""
    plan = _Plan(file, side)
    with torch.no_grad():
        for node in file.nodes:
            if node.kind not in TABLE:
                raise TrainingError(f"{where}: the operator {node.kind} ({node.name}) is not read; {WAY_OUT}")
            try:
                plan.add(node)
            except Unexpressed as error:
                raise TrainingError(f"{where}: {node.kind} ({node.name}) asks for {error}; {WAY_OUT}") from None
            except (RuntimeError, ValueError, TypeError, LookupError, AssertionError) as error:
                reason = " ".join(str(error).split())[:200]
                raise TrainingError(f"{where}: {node.kind} ({node.name}) cannot run: {reason}; {WAY_OUT}") from None
    return plan.steps


class _Plan:
    def __init__(self, file: OnnxFile, side: int) -> None:
        self.fixed = file.batch
        self.counts = (2 * (file.batch or 1), 3 * (file.batch or 1))
        self.steps: list[Step] = []
        self.values = {name: Value("constant", (tensor, tensor)) for name, tensor in file.constants.items()}
        scale = 255 if file.integer else 1
        images = [torch.rand(n, file.channels, side, side, generator=seeded(3)) * scale for n in self.counts]
        if file.layout == "NHWC":
            images = [x.permute(0, 2, 3, 1) for x in images]
        self.values[file.input] = Value("live", (images[0], images[1]))
        self.last_use = {name: i for i, node in enumerate(file.nodes) for name in node.inputs}
        self.nodes = 0
        self.minor: dict[str, int] = {}  # tensors whose batch is not outermost in its axis: see `rebatched`

    def add(self, node: Node) -> None:
        operator = TABLE[node.kind]
        given = [self.values[name] if name else None for name in node.inputs]
        live = any(value is not None and value.kind == "live" for value in given)
        varies = any(value is not None and value.kind == "batch" for value in given)
        made: list[tuple[Tensor, ...]] = []
        for run in range(2 if live or varies else 1):
            arguments = [_argument(value, run, static=i in operator.static) for i, value in enumerate(given)]
            if self.fixed and node.kind in ("Reshape", "Expand"):
                arguments[1] = self._target(node, given, run)
            output = operator.function(node.attributes, *arguments)
            made.append(output if isinstance(output, tuple) else (output,))
        self._pass_on(node, made)
        kinds = [self._kind(node, pair, live=live) for pair in zip(made[0], made[-1], strict=True)]
        for name, kind, first, second in zip(node.outputs, kinds, made[0], made[-1], strict=False):
            self.values[name] = Value(kind, (first, second))
        if "live" in kinds:
            self.steps.append(self._step(node, given, made, operator.static))
        self._forget(node)

    def _kind(self, node: Node, pair: tuple[Tensor, Tensor], *, live: bool) -> Literal["constant", "batch", "live"]:
        first, second = pair
        if live and node.kind not in ("Shape", "Size"):
            return "live"
        if first.shape != second.shape:
            return "live"  # a tensor made for the batch, such as zeros of its length
        return "constant" if first is second or torch.equal(first, second) else "batch"

    def _target(self, node: Node, given: list[Value | None], run: int) -> Any:
        """The target of a reshape or an expansion in a file for one batch, where it is written down."""
        x, target = given[0], given[1]
        assert x is not None
        axis = batch_axis(x.runs[0].shape, x.runs[1].shape) if x.kind == "live" else None
        wanted = _argument(target, run, static=True)
        if axis is None or target is None or target.kind != "constant":
            return wanted
        if node.kind == "Expand":
            return expanded(wanted, x.runs[run].shape, axis, run + 2)
        sizes, minor = rebatched(wanted, x.runs[run].shape, axis, run + 2, self.minor.get(node.inputs[0]))
        self.minor |= {} if minor is None else {node.outputs[0]: minor}
        return sizes

    def _pass_on(self, node: Node, made: list[tuple[Tensor, ...]]) -> None:
        """Where the batch is not outermost in its axis it stays so until the next reshape."""
        found = next((self.minor[name] for name in node.inputs if name in self.minor), None)
        if found is not None and node.kind not in ("Reshape", "Transpose") and made[0][0].shape != made[-1][0].shape:
            self.minor[node.outputs[0]] = found

    def _step(
        self, node: Node, given: list[Value | None], made: list[tuple[Tensor, ...]], static: tuple[int, ...]
    ) -> Step:
        inputs: list[Any] = []
        for i, value in enumerate(given):
            if value is None:
                inputs.append(None)
            elif value.kind == "live":
                inputs.append(Live(node.inputs[i]))
            elif i in static:
                inputs.append(self._linear(value))
            elif value.kind == "constant":
                inputs.append(value.runs[0])
            else:
                raise Unexpressed("arithmetic with the number of images")
        shapes = [(tuple(a.shape), tuple(b.shape)) for a, b in zip(made[0], made[-1], strict=True)]
        if node.kind in ("Reshape", "Expand"):
            inputs[1] = self._sizes(*shapes[0], found=node.kind == "Reshape")
        first = given[0] if given else None
        return Step(node, inputs, None if first is None else first.runs[0].to("meta"), shapes)

    def _linear(self, value: Value) -> Any:
        """Numbers of a value that depends at most on the batch."""
        if value.kind == "constant":
            return value.runs[0].tolist()
        pairs = zip(value.runs[0].reshape(-1).tolist(), value.runs[1].reshape(-1).tolist(), strict=True)
        entries = [self._entry(a, b) for a, b in pairs]
        return entries if value.runs[0].ndim else entries[0]

    def _entry(self, first: int, second: int) -> int | OfBatch:
        if first == second:
            return first
        (a, b), change = self.counts, second - first
        times = change // (b - a)
        if times * (b - a) != change:
            raise Unexpressed("a size that is not linear in the number of images")
        return OfBatch(times, first - times * a)

    def _sizes(self, first: tuple[int, ...], second: tuple[int, ...], *, found: bool) -> list[int | OfBatch]:
        """The shape that comes out; if `found`, the operator finds the one axis itself that depends on the batch."""
        sizes = [self._entry(a, b) for a, b in zip(first, second, strict=True)]
        free = [i for i, size in enumerate(sizes) if isinstance(size, OfBatch)]
        if found and len(free) == 1:
            sizes[free[0]] = -1
        return sizes

    def _forget(self, node: Node) -> None:
        """Drop activations that nobody reads any more."""
        for name in set(node.inputs):  # x * x names one twice
            if name and self.last_use.get(name) == self.nodes and self.values[name].kind == "live":
                del self.values[name]
        self.nodes += 1


def _argument(value: Value | None, run: int, *, static: bool) -> Any:
    if value is None:
        return None
    return value.runs[run].tolist() if static and value.kind != "live" else value.runs[run]
