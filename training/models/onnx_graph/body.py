"""The planned steps of an ONNX file as a chain of modules, divided where a single tensor carries everything."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor, nn

from training.models.onnx_graph.operators import MODULES, TABLE
from training.models.onnx_graph.plan import Live, OfBatch, Step
from training.models.onnx_graph.read import OnnxFile


class Operation(nn.Module):
    """One operator; its constant tensors are parameters of its own."""

    def __init__(self, step: Step) -> None:
        super().__init__()
        self.function, self.attributes = TABLE[step.node.kind].function, step.node.attributes
        self.inputs: list[Any] = list(step.inputs)
        for i, given in enumerate(step.inputs):
            if isinstance(given, Tensor):
                self.inputs[i] = _Kept(f"constant{i}")
                if given.is_floating_point():
                    self.register_parameter(f"constant{i}", nn.Parameter(given.clone(), requires_grad=False))
                else:
                    self.register_buffer(f"constant{i}", given.clone())

    def forward(self, count: int, *live: Tensor) -> Any:
        rest = iter(live)
        arguments = [next(rest) if isinstance(given, Live) else self._settled(given, count) for given in self.inputs]
        return self.function(self.attributes, *arguments)

    def _settled(self, given: Any, count: int) -> Any:
        if isinstance(given, _Kept):
            return getattr(self, given.name)
        if isinstance(given, OfBatch):
            return given.of(count)
        return [self._settled(each, count) for each in given] if isinstance(given, list) else given


class _Kept:
    def __init__(self, name: str) -> None:
        self.name = name


class Segment(nn.Module):
    """Steps between two tensors through which everything goes: one tensor in, one out, the batch first in both."""

    def __init__(self, steps: list[Step], entry: str) -> None:
        super().__init__()
        self.entry, self.exit = entry, steps[-1].node.outputs[0]
        self.run: list[tuple[str, bool, list[str], tuple[str, ...]]] = []
        for step in steps:
            module, wanted = _module(step)
            step.inputs.clear()  # constants are the module's from now on
            self.add_module(step.node.name, module)
            self.run.append((step.node.name, isinstance(module, Operation), wanted, step.node.outputs))

    def forward(self, x: Tensor) -> Tensor:
        values = {self.entry: x}
        for name, counted, wanted, outputs in self.run:
            live = [values[each] for each in wanted]
            module = self.get_submodule(name)
            made = module(x.shape[0], *live) if counted else module(*live)
            values.update(zip(outputs, made if isinstance(made, tuple) else (made,), strict=False))
        return values[self.exit]


class ChannelsLast(nn.Module):
    """Images (N, C, H, W) as (N, H, W, C), which the file takes."""

    def forward(self, x: Tensor) -> Tensor:
        return x.permute(0, 2, 3, 1)


class OnnxBody(nn.Sequential):
    """The network of an ONNX file: images (N, C, H, W) as the file takes them, in float32, to logits (N, K).

    The constants of `file` and of the `steps` are dropped as they become parameters.
    """

    def __init__(self, file: OnnxFile, steps: list[Step]) -> None:
        parts: OrderedDict[str, nn.Module] = OrderedDict()
        if file.layout == "NHWC":
            parts["channels_last"] = ChannelsLast()
        entry = file.input
        file.constants.clear()
        for group in divided(steps, file.output):
            parts[group[-1].node.name] = Segment(group, entry)
            entry = group[-1].node.outputs[0]
        if len(steps[-1].shapes[0][0]) > 2:
            parts["flat"] = nn.Flatten()
        super().__init__(parts)


def divided(steps: list[Step], output: str) -> list[list[Step]]:
    """The steps in groups; each but the last ends where its one output is all that later steps read."""
    last_use = {given.name: i for i, step in enumerate(steps) for given in step.inputs if isinstance(given, Live)}
    last_use[output] = len(steps)
    groups: list[list[Step]] = [[]]
    open_until: dict[str, int] = {}
    for i, step in enumerate(steps):
        groups[-1].append(step)
        open_until |= {name: last_use[name] for name in step.node.outputs if name in last_use}
        open_until = {name: last for name, last in open_until.items() if last > i}
        if list(open_until) == [step.node.outputs[0]] and batch_first(step) and i + 1 < len(steps):
            groups.append([])
    return groups


def batch_first(step: Step) -> bool:
    """Whether the first axis of what a step gives is the batch, and no other depends on it."""
    first, second = step.shapes[0]
    return len(first) > 1 and first[0] * 3 == second[0] * 2 and first[1:] == second[1:]


def _module(step: Step) -> tuple[nn.Module, list[str]]:
    """A step as a module, and the names of the tensors that it takes."""
    wanted = [given.name for given in step.inputs if isinstance(given, Live)]
    build = MODULES.get(step.node.kind)
    if build is not None and isinstance(step.inputs[0], Live) and len(wanted) == 1:
        with torch.no_grad():
            return build(step.node.attributes, step.example, *step.inputs[1:]), wanted
    return Operation(step), wanted
