"""Parts of a defence graph with the networks' convolutions in half precision.

Inputs and outputs stay float32. Convolutions that mix channels, and the ReLUs, sums and ReLU masks between them, become
float16; whatever else there is stays float32, for its range or its small differences: spatial means, norms, scores,
deviations, linear filters, the heads (a vector an image, nothing beside the convolutions) and the saliency's tail.
Products of a gradient are linear in it, so it is scaled by a power of two where it enters float16 and back where it
leaves: exact, but for what float16 cannot hold. Needs no torch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import onnx_ir as ir

from gateway.core.manifest import Part
from training.export.blocked import STEEP
from training.export.draft import Draft, ancestors, check, make

# Measured on the shipped network with every result rounded to float16: saliency is the same for 2**-8 to 2**12.
GRADIENT_SCALE = 2.0**4
_LARGEST = float(np.finfo(np.float16).max)


def half_parts(parts: Mapping[Part, ir.Model]) -> dict[Part, ir.Model]:
    """Every part in half precision; equal weights have equal names, as `write_parts` wants it."""
    return {part: halved(model) for part, model in parts.items()}


def halved(model: ir.Model) -> ir.Model:
    """One part in half precision, with the same inputs and outputs; `model` is left as it is."""
    made = _Halving(model.clone()).model()
    for node in made.graph:  # shapes and types as they were before some tensors became float16
        for value in node.outputs:
            if not value.is_graph_output():
                value.shape = value.type = None
    check(made, full=True)
    return made


class _Halving:
    """Goes through the nodes in order; `x_half` is the float16 form of a tensor `x`, which is cast from it if read."""

    def __init__(self, model: ir.Model) -> None:
        self._draft = Draft(model)
        self._nodes = list(model.graph)
        # Float16 forms by name; and of tensors that were made in it, whether they are a gradient and so scaled.
        self._made: dict[str, ir.Value] = {}
        self._scaled: dict[ir.Value | None, bool] = {}
        self._lasting = ancestors(value for value in model.graph.outputs if value.name != "saliency")

    def model(self) -> ir.Model:
        for node in self._nodes:
            scaled = self._joins(node)
            if scaled is not None:
                self._halve(node, scaled=scaled)
        self._draft.finish()
        return self._draft.model

    def _joins(self, node: ir.Node) -> bool | None:
        """None if a node stays float32; else whether what it makes is a scaled gradient."""
        known = [self._scaled.get(value) for value in node.inputs]
        match node.op_type:
            case "Conv" | "ConvTranspose":
                scaled = self._scaled.get(node.inputs[0], node not in self._lasting)
                return scaled if self._mixes_channels(node) and not (scaled and len(node.inputs) > 2) else None
            case "Relu" | "Transpose" | "Reshape":
                return known[0]
            case "AveragePool":  # of one pixel: a change of layout
                return known[0] if tuple(node.attributes.get_ints("kernel_shape", ())) == (1, 1) else None
            case "Add" | "Concat":
                return known[0] if len(set(known)) == 1 else None
            case "Mul":
                masks = [self._masked(value) is not None for value in node.inputs]
                return known[masks.index(False)] if sorted(masks) == [False, True] else None
        return None

    def _mixes_channels(self, node: ir.Node) -> bool:
        """Whether it is a network's convolution, not a linear filter, and its weights are in float16's range."""
        weights = [self._draft.value(value) for value in node.inputs[1:]]
        known = [weight for weight in weights if weight is not None]
        return len(known) == len(weights) and known[0].shape[1] > 1 and all(np.abs(w).max() <= _LARGEST for w in known)

    def _masked(self, value: ir.Value | None) -> ir.Value | None:
        """The tensor x of which `value` is the indicator x > 0, as a comparison or a steep ramp; else None."""
        clip, cast = self._draft.maker(value, "Clip"), self._draft.maker(value, "Cast")
        if clip is not None:
            ramp = self._draft.maker(clip.inputs[0], "Conv")
            weight = None if ramp is None else self._draft.value(ramp.inputs[1])
            return ramp.inputs[0] if ramp is not None and weight is not None and (weight == STEEP).all() else None
        above = None if cast is None else self._draft.maker(cast.inputs[0], "Greater")
        level = None if above is None else self._draft.scalar(above.inputs[1])
        return above.inputs[0] if above is not None and level is not None and level == 0 else None

    def _halve(self, node: ir.Node, *, scaled: bool) -> None:
        """Put the node's float16 form before it, and what casts that back to float32 in its place."""
        made, inputs = node.outputs[0], list(node.inputs)
        for at, value in enumerate(inputs):
            if value is not None and value.dtype == ir.DataType.FLOAT:
                inputs[at] = self._half(value, before=node, scaled=scaled)
        half = ir.Node(node.domain, node.op_type, inputs, node.attributes.values(), name=f"{made.name}_half")
        half.outputs[0].name = half.name
        back = [make("Cast", half.outputs, f"{made.name}_still_scaled", to=ir.DataType.FLOAT)]
        if scaled:
            unscale = self._draft.constant("gradient_unscale", np.array(1 / GRADIENT_SCALE, np.float32))
            back.append(make("Mul", [*back[0].outputs, unscale]))
        (single,) = back[-1].outputs
        ir.convenience.replace_nodes_and_values(self._draft.graph, node, [node], [half, *back], [made], [single])
        self._made[f"{made.name}_half"] = half.outputs[0]
        self._scaled[single] = scaled

    def _half(self, value: ir.Value, *, before: ir.Node, scaled: bool) -> ir.Value:
        """The float16 form of a tensor, which is made before that node unless one has made it."""
        if value in self._scaled:
            return self._made[f"{value.name}_half"]
        if self._draft.value(value) is not None:
            return self._half_weight(value, before)
        name = f"{value.name}_half"
        if (source := self._masked(value)) is not None:
            zero = self._draft.constant("zero_half", np.array(0, np.float16))
            half = self._half(source, before=before, scaled=False)
            return self._once(name, before, lambda: _cast(make("Greater", [half, zero], f"{value.name}_above")))
        if not scaled:
            return self._once(name, before, lambda: [make("Cast", [value], to=ir.DataType.FLOAT16)])
        scale, seed = self._draft.constant("gradient_scale", np.array(GRADIENT_SCALE, np.float32)), f"{value.name}_seed"
        return self._once(f"{seed}_half", before, lambda: _cast(make("Mul", [value, scale], seed)))

    def _half_weight(self, value: ir.Value, before: ir.Node) -> ir.Value:
        """A constant in float16; one that is cut or turned from another is so in float16, too, and stored once."""
        name, maker = f"{value.name}_half", value.producer()
        if maker is None or maker.op_type == "Constant":
            content = self._draft.value(value)
            assert content is not None
            return self._draft.constant(name, content.astype(np.float16))
        source = maker.inputs[0]
        assert source is not None
        inputs = [self._half_weight(source, before), *maker.inputs[1:]]
        attributes = maker.attributes.values()
        return self._once(name, before, lambda: [ir.Node(maker.domain, maker.op_type, inputs, attributes)])

    def _once(self, name: str, before: ir.Node, make_nodes: Callable[[], list[ir.Node]]) -> ir.Value:
        """The tensor `name`, which the last of the nodes makes; they are put before that node unless they are there."""
        if name not in self._made:
            nodes = make_nodes()
            nodes[-1].name = nodes[-1].outputs[0].name = name
            self._draft.graph.insert_before(before, nodes)
            self._made[name] = nodes[-1].outputs[0]
        return self._made[name]


def _cast(node: ir.Node) -> list[ir.Node]:
    """The node and a cast of what it makes to float16."""
    return [node, make("Cast", node.outputs, to=ir.DataType.FLOAT16)]
