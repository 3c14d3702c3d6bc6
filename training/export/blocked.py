"""Rewrites that keep an input gradient in the blocked layout (NCHWc) of ONNX Runtime's convolutions on CPU.

There, convolutions, poolings, sums and products of tensors of the same known shape stay blocked; everything else is
brought back to plain layout, at two more passes over memory each time. The rules express the same in terms that stay
blocked. All operators are stock ONNX, so that other providers run the same graph; where a pattern is absent, nothing
changes. Results agree to float rounding.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from training.export.draft import Draft, Swaps, make, plain
from training.export.filters import filters_as_products
from training.export.phases import transposed_as_phases

# Channels are blocked by 16 (AVX-512) or 8; a tensor with another number of channels is not kept blocked.
BLOCK = 16
# Smallest normal float times this is 1: a steep ramp, cut at 1, is the indicator of what is above zero.
STEEP = np.float32(2.0**126)


def keep_blocked(model: ir.Model) -> int:
    """Rewrite `model` in place; returns how many places were changed."""
    draft = Draft(model)
    split_off_axis(draft)
    crops_as_pads(draft)
    fold_uniform(draft)
    broadcast_late(draft)
    masks_as_ramps(draft)
    clip_masks_as_ramps(draft)
    transposed_as_phases(draft, BLOCK)
    few_channels_as_many(draft)
    filters_as_products(draft, BLOCK)
    if draft.changes:
        draft.finish()
    return draft.changes


def split_off_axis(draft: Draft) -> None:
    """Reshape of (N,) to (N, 1) as Unsqueeze, behind which the batch is still known."""
    swaps: Swaps = {}
    for node in draft.graph:
        if node.op_type != "Reshape":
            continue
        target, shape = draft.value(node.inputs[1]), draft.shape(node.inputs[0])
        if shape is not None and len(shape) == 1 and target is not None and target.tolist() == [-1, 1]:
            axis = draft.constant("axis_1", np.array([1], np.int64))
            swaps[node] = [make("Unsqueeze", [node.inputs[0], axis])]
    draft.replace(swaps)


def fold_uniform(draft: Draft) -> None:
    """Arithmetic with a tensor that holds one value everywhere takes that value as a scalar instead.

    A gradient starts from such a tensor, expanded to the batch; behind it no inference knows the batch any more.
    """
    uniform: dict[ir.Value | None, np.ndarray] = {}
    swaps: Swaps = {}
    for node in draft.graph:
        made = node.outputs[0]
        if node.op_type in ("Expand", "Reshape", "Unsqueeze", "Squeeze", "Neg"):
            value = uniform.get(node.inputs[0], draft.scalar(node.inputs[0]))
            if value is not None and draft.value(made) is None:
                uniform[made] = -value if node.op_type == "Neg" else value
        elif node.op_type in ("Add", "Sub", "Mul", "Div"):
            shape = draft.shape(made)
            for at, other in ((0, node.inputs[1]), (1, node.inputs[0])):
                value = uniform.get(node.inputs[at])
                if value is None or shape is None or draft.shape(other) != shape:
                    continue
                if value == 1 and (node.op_type == "Mul" or (node.op_type == "Div" and at == 1)):
                    swaps[node] = [make("Identity", [other])]
                else:
                    scalar = draft.constant(f"{made.name}_uniform", value)
                    swaps[node] = [make(node.op_type, [scalar, other] if at == 0 else [other, scalar])]
                break
    draft.replace(swaps)


def broadcast_late(draft: Draft) -> None:
    """`Expand(x) / c * y` as `x / c * y` where y has the expanded shape: the product broadcasts by itself."""
    swaps: Swaps = {}
    for node in draft.graph:
        shape = draft.shape(node.outputs[0])
        if node.op_type != "Mul" or shape is None:
            continue
        for small, full in (tuple(node.inputs), tuple(node.inputs)[::-1]):
            scaled = draft.maker(small, "Div")
            if scaled is not None and draft.scalar(scaled.inputs[1]) is None:
                continue
            expanded = draft.maker(small if scaled is None else scaled.inputs[0], "Expand")
            if expanded is None or draft.shape(full) != shape:
                continue
            source, before = expanded.inputs[0], list[ir.Node]()
            if scaled is not None:
                before = [make("Div", [source, scaled.inputs[1]], f"{node.outputs[0].name}_scaled")]
                source = before[0].outputs[0]
            swaps[node] = [*before, make("Mul", [source, full])]
            break
    draft.replace(swaps)


def masks_as_ramps(draft: Draft) -> None:
    """`Cast(x > 0)` of a ReLU's output as a steep channelwise convolution, clipped to [0, 1].

    ONNX Runtime makes one node of the two. Exact but for values below the smallest normal float.
    """
    swaps: Swaps = {}
    for node in draft.graph:
        above = draft.maker(node.inputs[0], "Greater") if node.op_type == "Cast" else None
        if above is None or node.attributes.get_int("to") != ir.DataType.FLOAT:
            continue
        source, level = above.inputs[0], draft.scalar(above.inputs[1])
        size = draft.image(source)
        if source is None or level is None or level != 0 or size is None or size[0] % BLOCK:
            continue
        if draft.maker(source, "Relu") is None or source.dtype != ir.DataType.FLOAT:
            continue
        channels = size[0]
        steep = _full(draft, "steep", STEEP, (channels, 1, 1, 1))
        limits = [_full(draft, f"ramp_{limit}", limit) for limit in (0, 1)]
        ramp = make("Conv", [source, steep], f"{node.outputs[0].name}_ramp", group=channels, kernel_shape=[1, 1])
        swaps[node] = [ramp, make("Clip", [*ramp.outputs, *limits])]
    draft.replace(swaps)


def clip_masks_as_ramps(draft: Draft) -> None:
    """`Where(x <= 0 or x >= top, 0, gradient)` as the gradient times a mask, two steep ramps of `Clip(x, 0, top)`.

    Of ReLU6 and the like. The clipped tensor stays blocked beside its convolution, which ONNX Runtime then runs with
    the clipping inside; each ramp is one channelwise convolution with its sum and clipping inside. The falling ramp is
    exact: its slope is a power of two that makes the smallest step below `top` at least 1. The rising one takes what is
    below 2**-90 for zero.
    """
    swaps: Swaps = {}
    for node in draft.graph:
        found = _outside(draft, node) if node.op_type == "Where" else None
        if found is None:
            continue
        clipped, top = found
        channels, name = (draft.image(clipped) or (1,))[0], node.outputs[0].name
        if channels % BLOCK or draft.shape(clipped) != draft.shape(node.inputs[2]):
            continue
        slope = np.float32(2.0 ** np.ceil(-np.log2(top - np.nextafter(top, np.float32(0)))))
        deep = np.float32(2.0 ** np.ceil(np.log2(slope * top) + 1))  # below what the falling ramp starts from

        weights, biases, shape = (channels, 1, 1, 1), (channels,), {"group": channels, "kernel_shape": [1, 1]}
        steep = [_full(draft, "steep", STEEP, weights), _full(draft, f"depth_{top:g}", -deep, biases)]
        rising = make("Conv", [clipped, *steep], f"{name}_rising", **shape)
        limits = [_full(draft, f"depth_{top:g}", -deep), _full(draft, "ramp_0", 0)]
        zeros = make("Clip", [*rising.outputs, *limits], f"{name}_zeros")
        slopes = [_full(draft, f"slope_{top:g}", -slope, weights), _full(draft, f"start_{top:g}", slope * top, biases)]
        falling = make("Conv", [clipped, *slopes], f"{name}_falling", **shape)
        both = make("Add", [*falling.outputs, *zeros.outputs], f"{name}_both")
        limits = [_full(draft, f"ramp_{limit}", limit) for limit in (0, 1)]
        mask = make("Clip", [*both.outputs, *limits], f"{name}_mask")
        swaps[node] = [rising, zeros, falling, both, mask, make("Mul", [node.inputs[2], *mask.outputs])]
    draft.replace(swaps)


def _full(draft: Draft, name: str, value: float | np.float32, shape: tuple[int, ...] = ()) -> ir.Value:
    """A constant that holds one value everywhere."""
    return draft.constant("_".join([name, *map(str, shape[:1])]), np.full(shape, value, np.float32))


def _outside(draft: Draft, node: ir.Node) -> tuple[ir.Value, np.float32] | None:
    """`Clip(x, 0, top)` and `top` if the node puts zero where x is at most 0 or at least `top`, else None."""
    either, filler = draft.maker(node.inputs[0], "Or"), draft.scalar(node.inputs[1])
    if either is None or filler is None or filler != 0:
        return None
    low, high = draft.maker(either.inputs[0], "LessOrEqual"), draft.maker(either.inputs[1], "GreaterOrEqual")
    if low is None or high is None or low.inputs[0] is None or low.inputs[0] is not high.inputs[0]:
        return None
    bottom, top = draft.scalar(low.inputs[1]), draft.scalar(high.inputs[1])
    if bottom is None or top is None or bottom != 0 or not 0 < top < 2**20:
        return None
    for reader in low.inputs[0].consumers():
        if reader.op_type == "Clip" and len(reader.inputs) == 3:
            limits = [draft.scalar(value) for value in reader.inputs[1:]]
            if limits == [bottom, top]:
                return reader.outputs[0], np.float32(top)
    return None


def crops_as_pads(draft: Draft) -> None:
    """`Pad` that takes rows and columns off what a convolution makes: the convolution does not make them.

    The gradient of padding is such a crop. Where nothing is taken off, the tensor is passed on as it is.
    """
    swaps: Swaps = {}
    for node in draft.graph:
        widths = draft.value(node.inputs[1]) if node.op_type == "Pad" else None
        if widths is None or node.attributes.get_string("mode", "constant") != "constant" or len(node.inputs) > 3:
            continue
        source = node.inputs[0]
        maker = None if source is None else source.producer()
        if not widths.any():
            swaps[node] = [make("Identity", [source])]
        elif source is not None and maker is not None and widths.size == 8 and len(source.uses()) == 1:
            pads = _cropped(maker, widths)
            if pads is not None and not source.is_graph_output():
                attributes = {name: each.value for name, each in maker.attributes.items()} | {"pads": pads}
                swaps[node] = [make(maker.op_type, maker.inputs, **attributes)]
    draft.replace(swaps)


def _cropped(maker: ir.Node, widths: np.ndarray) -> list[int] | None:
    """Pads with which a convolution makes what is left of its output; None if no pads do."""
    before, after = widths[:4], widths[4:]
    if max(widths) > 0 or any(before[:2]) or any(after[:2]):
        return None
    crops, pads = [*before[2:], *after[2:]], maker.attributes.get_ints("pads", [0, 0, 0, 0])
    if maker.attributes.get_string("auto_pad", "NOTSET") != "NOTSET":
        return None
    if maker.op_type == "ConvTranspose":
        return [int(pad - crop) for pad, crop in zip(pads, crops, strict=True)]
    if maker.op_type == "Conv" and plain(maker):
        made = [int(pad + crop) for pad, crop in zip(pads, crops, strict=True)]
        return made if min(made) >= 0 else None
    return None


def few_channels_as_many(draft: Draft) -> None:
    """A convolution from many channels to a handful, computed for several pixels of a row at a time.

    Output channels are filled up to a whole block: with 3 of 16 most work is void. Four pixels give 12, for a kernel
    that is three wider and moves by four. With channels last they lie in memory as the pixels of the row do.
    """
    swaps: Swaps = {}
    for node in draft.graph:
        if (
            node.op_type != "Conv"
            or len(node.inputs) > 2
            or node.attributes.get_int("group", 1) != 1
            or not plain(node)
        ):
            continue
        name, weight, size = node.outputs[0].name, draft.value(node.inputs[1]), draft.image(node.outputs[0])
        if weight is None or size is None or weight.shape[1] % BLOCK:
            continue
        made, height, width = size
        taken, high, wide = weight.shape[1:]
        steps = [step for step in range(1, BLOCK // made + 1) if width % step == 0]
        step = min(steps, key=lambda step: (wide + step - 1) / step, default=1)
        if step == 1:
            continue
        packed = np.zeros((step, made, taken, high, wide + step - 1), weight.dtype)
        for pixel in range(step):
            packed[pixel, ..., pixel : pixel + wide] = weight
        kernel = draft.constant(f"{name}_packed_weight", packed.reshape(step * made, *packed.shape[2:]))
        whole = draft.constant(f"{name}_whole", np.array([0, height, width, made], np.int64))
        moves = {"strides": [1, step], "pads": node.attributes.get_ints("pads", [0, 0, 0, 0])}
        conv = make("Conv", [node.inputs[0], kernel], f"{name}_packed", kernel_shape=packed.shape[3:], **moves)
        last = make("Transpose", conv.outputs, f"{name}_packed_last", perm=[0, 2, 3, 1])
        rows = make("Reshape", [*last.outputs, whole], f"{name}_last")
        swaps[node] = [conv, last, rows, make("Transpose", rows.outputs, perm=[0, 3, 1, 2])]
    draft.replace(swaps)
