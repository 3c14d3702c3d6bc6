"""Parts of a defence graph with the networks' convolutions in half precision.

Inputs and outputs stay float32. Convolutions that mix channels, and the ReLUs, sums and ReLU masks between them, become
float16; whatever else there is stays float32, for its range or its small differences: spatial means, norms, scores,
deviations, linear filters, the heads (a vector an image, nothing beside the convolutions) and the saliency's tail.
Products of a gradient are linear in it, so it is scaled by a power of two where it enters float16 and back where it
leaves: exact, but for what float16 cannot hold. Needs no torch.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from gateway.core.manifest import Part
from training.export.blocked import STEEP
from training.export.draft import Draft, attribute, make
from training.export.parts import extracted, reads

# Measured on the shipped network with every result rounded to float16: saliency is the same for 2**-8 to 2**12.
GRADIENT_SCALE = 2.0**4
_LARGEST = float(np.finfo(np.float16).max)


def half_parts(parts: Mapping[Part, onnx.ModelProto]) -> dict[Part, onnx.ModelProto]:
    """Every part in half precision; equal weights have equal names, as `write_parts` wants it."""
    return {part: halved(model) for part, model in parts.items()}


def halved(model: onnx.ModelProto) -> onnx.ModelProto:
    """One part in half precision, with the same inputs and outputs."""
    return _Halving(model).model()


class _Halving:
    """Goes through the nodes in order; `x_half` is the float16 form of a tensor `x`, which is cast from it if read."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self._whole = model
        self._draft = Draft(onnx.ModelProto.FromString(model.SerializeToString()))
        self._nodes: list[onnx.NodeProto] = []
        self._constants: dict[str, onnx.TensorProto] = {}
        self._made: set[str] = set()
        # Tensors made in float16, and whether they are a gradient and so scaled.
        self._scaled: dict[str, bool] = {}
        self._lasting = self._leading_to({value.name for value in model.graph.output} - {"saliency"})

    def model(self) -> onnx.ModelProto:
        for node in self._whole.graph.node:
            scaled = self._joins(node)
            if scaled is None:
                self._nodes.append(node)
            else:
                self._halve(node, scaled=scaled)
        made = onnx.ModelProto.FromString(self._whole.SerializeToString())
        del made.graph.node[:]
        made.graph.node.extend(self._nodes)
        made.graph.initializer.extend(self._constants.values())
        inputs = list(made.graph.input)
        made = extracted(made, [value.name for value in inputs], [value.name for value in made.graph.output])
        made.graph.input.extend(inputs)
        onnx.checker.check_model(made, full_check=True)
        return made

    def _joins(self, node: onnx.NodeProto) -> bool | None:
        """None if a node stays float32; else whether what it makes is a scaled gradient."""
        known = [self._scaled.get(name) for name in node.input]
        match node.op_type:
            case "Conv" | "ConvTranspose":
                scaled = self._scaled.get(node.input[0], node.output[0] not in self._lasting)
                return scaled if self._mixes_channels(node) and not (scaled and len(node.input) > 2) else None
            case "Relu" | "Transpose" | "Reshape":
                return known[0]
            case "AveragePool":  # of one pixel: a change of layout
                return known[0] if attribute(node, "kernel_shape", []) == [1, 1] else None
            case "Add" | "Concat":
                return known[0] if len(set(known)) == 1 else None
            case "Mul":
                masks = [self._masked(name) is not None for name in node.input]
                return known[masks.index(False)] if sorted(masks) == [False, True] else None
        return None

    def _mixes_channels(self, node: onnx.NodeProto) -> bool:
        """Whether it is a network's convolution, not a linear filter, and its weights are in float16's range."""
        weights = [self._draft.value(name) for name in node.input[1:]]
        known = [weight for weight in weights if weight is not None]
        return len(known) == len(weights) and known[0].shape[1] > 1 and all(np.abs(w).max() <= _LARGEST for w in known)

    def _masked(self, name: str) -> str | None:
        """The tensor of which `name` is the indicator x > 0, said as a comparison or as a steep ramp; else None."""
        clip, cast = self._draft.maker(name, "Clip"), self._draft.maker(name, "Cast")
        if clip is not None:
            ramp = self._draft.maker(clip.input[0], "Conv")
            weight = None if ramp is None else self._draft.value(ramp.input[1])
            return ramp.input[0] if ramp is not None and weight is not None and (weight == STEEP).all() else None
        above = None if cast is None else self._draft.maker(cast.input[0], "Greater")
        level = None if above is None else self._draft.scalar(above.input[1])
        return above.input[0] if above is not None and level is not None and level == 0 else None

    def _halve(self, node: onnx.NodeProto, *, scaled: bool) -> None:
        copy = onnx.NodeProto.FromString(node.SerializeToString())
        real = {name for name in node.input if self._draft.kinds.get(name) == TensorProto.FLOAT}
        copy.input[:] = [self._half(name, scaled=scaled) if name in real else name for name in node.input]
        self._nodes.append(copy)
        name = node.output[0]
        self._scaled[name] = scaled
        copy.name = f"{name}_half"
        copy.output[:] = [copy.name]
        if scaled:
            unscale = self._constant("gradient_unscale", np.array(1 / GRADIENT_SCALE, np.float32))
            self._nodes += [
                make("Cast", [f"{name}_half"], f"{name}_still_scaled", to=TensorProto.FLOAT),
                make("Mul", [f"{name}_still_scaled", unscale], name),
            ]
        else:
            self._nodes.append(make("Cast", [f"{name}_half"], name, to=TensorProto.FLOAT))

    def _half(self, name: str, *, scaled: bool) -> str:
        """Name of the float16 form of a tensor, which is made here unless a node has made it."""
        if name in self._scaled:
            return f"{name}_half"
        if self._draft.value(name) is not None:
            return self._half_weight(name)
        if masked := self._masked(name):
            return self._half_mask(name, self._half(masked, scaled=False))
        if not scaled:
            return self._cast(name, f"{name}_half")
        scale = self._constant("gradient_scale", np.array(GRADIENT_SCALE, np.float32))
        if f"{name}_seed_half" not in self._made:
            self._nodes.append(make("Mul", [name, scale], f"{name}_seed"))
        return self._cast(f"{name}_seed", f"{name}_seed_half")

    def _half_mask(self, name: str, source: str) -> str:
        if f"{name}_half" not in self._made:
            zero = self._constant("zero_half", np.array(0, np.float16))
            self._nodes.append(make("Greater", [source, zero], f"{name}_above"))
        return self._cast(f"{name}_above", f"{name}_half")

    def _half_weight(self, name: str) -> str:
        """A constant in float16; one that is cut or turned from another is so in float16, too, and stored once."""
        half, maker = f"{name}_half", self._draft.made_by.get(name)
        if maker is None or maker.op_type == "Constant":
            value = self._draft.value(name)
            assert value is not None
            return self._constant(half, value.astype(np.float16))
        if half not in self._made:
            source = self._half_weight(maker.input[0])
            copy = onnx.NodeProto.FromString(maker.SerializeToString())
            copy.name, copy.input[0], copy.output[0] = half, source, half
            self._nodes.append(copy)
            self._made.add(half)
        return half

    def _cast(self, name: str, half: str) -> str:
        if half not in self._made:
            self._nodes.append(make("Cast", [name], half, to=TensorProto.FLOAT16))
            self._made.add(half)
        return half

    def _constant(self, name: str, content: np.ndarray) -> str:
        if name not in self._constants:
            self._constants[name] = numpy_helper.from_array(np.ascontiguousarray(content), name)
        return name

    def _leading_to(self, outputs: set[str]) -> set[str]:
        found: set[str] = set()
        wanted = list(outputs)
        while wanted:
            name = wanted.pop()
            if name not in found:
                found.add(name)
                wanted.extend(reads(self._draft.made_by[name]) if name in self._draft.made_by else ())
        return found
