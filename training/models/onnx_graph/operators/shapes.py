"""Operators that move entries: views, slices, joins, padding."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from training.models.onnx_graph.operators.operator import Attributes, Operator, Unexpressed, axes_of


def shape(attributes: Attributes, x: Tensor) -> Tensor:
    return torch.tensor(x.shape)[attributes.get("start", 0) : attributes.get("end")]


def reshape(attributes: Attributes, x: Tensor, target: list[int]) -> Tensor:
    copies = not attributes.get("allowzero", 0)
    return x.reshape([x.shape[i] if copies and size == 0 else size for i, size in enumerate(target)])


def flatten(attributes: Attributes, x: Tensor) -> Tensor:
    axis = attributes.get("axis", 1)
    axis = axis + x.ndim if axis < 0 else axis
    if axis == 1:
        return x.flatten(1)
    return x.reshape([1, -1]) if axis == 0 else x.flatten(axis).flatten(0, axis - 1)


def squeeze(attributes: Attributes, x: Tensor, given: list[int] | None = None) -> Tensor:
    axes = axes_of(attributes, given)
    return x.squeeze() if axes is None else x.squeeze(tuple(axes))


def unsqueeze(attributes: Attributes, x: Tensor, given: list[int] | None = None) -> Tensor:
    axes = axes_of(attributes, given) or []
    for axis in sorted(axis % (x.ndim + len(axes)) for axis in axes):
        x = x.unsqueeze(axis)
    return x


def transpose(attributes: Attributes, x: Tensor) -> Tensor:
    return x.permute(attributes.get("perm") or list(range(x.ndim))[::-1])


def concat(attributes: Attributes, *inputs: Tensor) -> Tensor:
    """One row beside a batch is given to each of its images: class tokens of files that are fixed to one image."""
    axis = attributes["axis"] % inputs[0].ndim
    if axis != 0 and len({int(x.shape[0] == 1) for x in inputs}) > 1:
        rows = next(x.shape[0] for x in inputs if x.shape[0] != 1)
        inputs = tuple(x.expand(rows, *x.shape[1:]) if x.shape[0] == 1 else x for x in inputs)
    return torch.cat(inputs, axis)


def split(attributes: Attributes, x: Tensor, given: list[int] | None = None) -> tuple[Tensor, ...]:
    axis, sizes = attributes.get("axis", 0), axes_of(attributes, given, "split")
    if sizes is None:
        size = -(-x.shape[axis] // (attributes.get("num_outputs") or attributes["outputs"]))
        return torch.split(x, size, axis)
    return torch.split(x, sizes, axis)


def slices(
    attributes: Attributes,
    x: Tensor,
    starts: list[int] | None = None,
    ends: list[int] | None = None,
    axes: list[int] | None = None,
    steps: list[int] | None = None,
) -> Tensor:
    starts, ends = axes_of(attributes, starts, "starts") or [], axes_of(attributes, ends, "ends") or []
    axes = axes_of(attributes, axes) or list(range(len(starts)))
    for at, start, end, step in zip(axes, starts, ends, steps or [1] * len(starts), strict=True):
        x = _slice(x, at % x.ndim, start, end, step)
    return x


def _slice(x: Tensor, axis: int, start: int, end: int, step: int) -> Tensor:
    size = x.shape[axis]
    if step < 0:
        first = min(start + size if start < 0 else start, size - 1)
        last = max(end + size if end < 0 else end, -1)
        return x.index_select(axis, torch.arange(first, last, step))
    whole = (slice(None),) * axis
    return x[(*whole, slice(start, min(end, 2**62), step))]


def gather(attributes: Attributes, x: Tensor, indices: int | list[Any] | Tensor) -> Tensor:
    """Constant indices come as numbers: of one place it is a view."""
    axis = attributes.get("axis", 0) % x.ndim
    if isinstance(indices, int):
        return x.select(axis, indices)
    found = indices if isinstance(indices, Tensor) else torch.tensor(indices)
    flat = torch.where(found < 0, found + x.shape[axis], found).flatten()
    return x.index_select(axis, flat).unflatten(axis, found.shape) if found.ndim != 1 else x.index_select(axis, flat)


def gather_elements(attributes: Attributes, x: Tensor, indices: Tensor) -> Tensor:
    axis = attributes.get("axis", 0)
    return x.gather(axis, torch.where(indices < 0, indices + x.shape[axis], indices))


def gather_nd(attributes: Attributes, x: Tensor, indices: Tensor) -> Tensor:
    if attributes.get("batch_dims", 0):
        raise Unexpressed("GatherND with batch_dims")
    return x[tuple(indices.unbind(-1))]


def scatter_nd(attributes: Attributes, x: Tensor, indices: Tensor, updates: Tensor) -> Tensor:
    if attributes.get("reduction", "none") != "none":
        raise Unexpressed("ScatterND with a reduction")
    made = x.clone()
    made[tuple(indices.unbind(-1))] = updates
    return made


def expand(_: Attributes, x: Tensor, target: list[int]) -> Tensor:
    missing = len(target) - x.ndim
    sizes = [*([1] * max(0, -missing)), *target]
    own = [1] * max(0, missing) + list(x.shape)
    return x.expand([mine if size == 1 else size for mine, size in zip(own, sizes, strict=True)])


def tile(_: Attributes, x: Tensor, repeats: list[int]) -> Tensor:
    return x.repeat(repeats)


def constant_of_shape(attributes: Attributes, target: list[int]) -> Tensor:
    value = attributes.get("value")
    if value is None:
        return torch.zeros(target)
    return torch.full(target, value.reshape(-1)[0].item(), dtype=value.dtype)


def ranged(_: Attributes, start: float, limit: float, step: float) -> Tensor:
    return torch.arange(start, limit, step)


def constant(attributes: Attributes) -> Tensor:
    for name in ("value", "value_float", "value_int", "value_floats", "value_ints"):
        if name in attributes:
            found: Any = attributes[name]
            return found if isinstance(found, Tensor) else torch.tensor(found)
    raise Unexpressed("a constant of text or of sparse entries")


def pad(
    attributes: Attributes,
    x: Tensor,
    given: list[int] | None = None,
    value: float | None = None,
    axes: list[int] | None = None,
) -> Tensor:
    pads = axes_of(attributes, given, "pads") or []
    places = [axis % x.ndim for axis in axes] if axes else list(range(x.ndim))
    before, after = dict.fromkeys(range(x.ndim), 0), dict.fromkeys(range(x.ndim), 0)
    for i, axis in enumerate(places):
        before[axis], after[axis] = pads[i], pads[i + len(places)]
    widths = [width for axis in reversed(range(x.ndim)) for width in (before[axis], after[axis])]
    while len(widths) > 2 and not any(widths[-2:]):
        widths = widths[:-2]
    mode = attributes.get("mode", "constant")
    if not any(widths):
        return x
    if mode == "constant":
        return F.pad(x, widths, value=attributes.get("value", 0.0) if value is None else value)
    torch_mode = {"reflect": "reflect", "edge": "replicate", "wrap": "circular"}[mode]
    return F.pad(x, widths, mode=torch_mode)


def depth_to_space(attributes: Attributes, x: Tensor) -> Tensor:
    size = attributes["blocksize"]
    if attributes.get("mode", "DCR") == "CRD":
        return F.pixel_shuffle(x, size)
    channels = x.shape[1] // size**2
    parts = x.unflatten(1, (size, size, channels)).permute(0, 3, 4, 1, 5, 2)
    return parts.flatten(4, 5).flatten(2, 3)


def space_to_depth(attributes: Attributes, x: Tensor) -> Tensor:
    size = attributes["blocksize"]
    parts = x.unflatten(3, (-1, size)).unflatten(2, (-1, size))
    return parts.permute(0, 3, 5, 1, 2, 4).flatten(1, 3)


def trilu(attributes: Attributes, x: Tensor, diagonal: int | None = None) -> Tensor:
    keep = torch.triu if attributes.get("upper", 1) else torch.tril
    return keep(x, diagonal or 0)


SHAPES: dict[str, Operator] = {
    "Shape": Operator(shape),
    "Size": Operator(lambda _, x: torch.tensor(x.numel())),
    "Reshape": Operator(reshape, static=(1,)),
    "Flatten": Operator(flatten),
    "Squeeze": Operator(squeeze, static=(1,)),
    "Unsqueeze": Operator(unsqueeze, static=(1,)),
    "Transpose": Operator(transpose),
    "Concat": Operator(concat),
    "Split": Operator(split, static=(1,)),
    "Slice": Operator(slices, static=(1, 2, 3, 4)),
    "Gather": Operator(gather, static=(1,)),
    "GatherElements": Operator(gather_elements),
    "GatherND": Operator(gather_nd),
    "ScatterND": Operator(scatter_nd),
    "Expand": Operator(expand, static=(1,)),
    "Tile": Operator(tile, static=(1,)),
    "ConstantOfShape": Operator(constant_of_shape, static=(0,)),
    "Range": Operator(ranged, static=(0, 1, 2)),
    "Constant": Operator(constant),
    "Pad": Operator(pad, static=(1, 2, 3)),
    "DepthToSpace": Operator(depth_to_space),
    "SpaceToDepth": Operator(space_to_depth),
    "Trilu": Operator(trilu, static=(1,)),
}
