"""Linear filters along rows and columns of images of a few channels, as matrix products."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto

from training.export.draft import Draft, Swaps, attribute, make, plain

# A filter becomes a product with a full matrix unless the image is longer than this many times the filter.
SPARSEST = 16
# What a node does along rows and along columns: matrices (made, taken), None where it does nothing.
Bands = list[np.ndarray | None]


def filters_as_products(draft: Draft, block: int) -> None:
    """Channelwise convolutions and poolings along one axis, edge padding included, as one product for each axis.

    Where channels are no multiple of `block`, ONNX Runtime computes them one pixel after the other.
    """
    swaps: Swaps = {}
    absorbed: set[str] = set()
    for node in reversed(draft.graph.node):
        if node.op_type == "Pad" or node.output[0] in absorbed:
            continue
        total: Bands = [None, None]
        step, source = node, ""
        while (bands := _bands(draft, step, block)) is not None:
            total = [b if a is None else a if b is None else a @ b for a, b in zip(total, bands, strict=True)]
            absorbed.add(step.output[0])
            source = step.input[0]
            if draft.readers[source] != 1 or source not in draft.made_by:
                break
            step = draft.made_by[source]
        if source:
            swaps[node.output[0]] = _products(draft, source, node.output[0], total)
    draft.replace(swaps)


def _products(draft: Draft, source: str, name: str, total: Bands) -> list[onnx.NodeProto]:
    """`name` as the matrix of the rows times `source` times the transposed matrix of the columns."""
    rows, columns = (None if matrix is None else matrix.astype(np.float32) for matrix in total)
    nodes = []
    if columns is not None:
        made = name if rows is None else f"{name}_by_columns"
        nodes.append(make("MatMul", [source, draft.constant(f"{name}_columns", columns.T)], made))
        source = made
    if rows is not None:
        nodes.append(make("MatMul", [draft.constant(f"{name}_rows", rows), source], name))
    return nodes or [make("Identity", [source], name)]


def _bands(draft: Draft, node: onnx.NodeProto, block: int) -> Bands | None:
    """What a node does as matrices; None if it is no such filter, or its channels are blocked."""
    if node.op_type not in ("Pad", "Conv", "AveragePool") or draft.kinds.get(node.input[0]) != TensorProto.FLOAT:
        return None
    size = draft.image(node.input[0])
    if size is None or size[0] % block == 0:
        return None
    if node.op_type == "Pad":
        return _padding(draft, node, size[1:])
    taps = _taps(draft, node, size[0])
    if taps is None or any(length > SPARSEST * len(t) for t, length in zip(taps, size[1:], strict=True) if len(t) > 1):
        return None
    return [_band(t, length) if len(t) > 1 or t[0] != 1 else None for t, length in zip(taps, size[1:], strict=True)]


def _band(taps: np.ndarray, length: int) -> np.ndarray:
    """Matrix (length - taps + 1, length) of a filter that stays inside."""
    band = np.zeros((length - len(taps) + 1, length))
    for at in range(len(band)):
        band[at, at : at + len(taps)] = taps
    return band


def _padding(draft: Draft, node: onnx.NodeProto, lengths: tuple[int, int]) -> Bands | None:
    """Repetition of the border pixels as matrices; None for padding of another kind or of other axes."""
    pads = draft.value(node.input[1])
    if attribute(node, "mode", b"constant") != b"edge" or pads is None or pads.size != 8 or len(node.input) > 3:
        return None
    before, after = pads[:4], pads[4:]
    if any(before[:2]) or any(after[:2]) or pads.min() < 0:
        return None
    return [
        np.eye(length)[np.clip(np.arange(-first, length + last), 0, length - 1)] if first or last else None
        for length, first, last in zip(lengths, before[2:], after[2:], strict=True)
    ]


def _taps(draft: Draft, node: onnx.NodeProto, channels: int) -> list[np.ndarray] | None:
    """Filters along rows and columns of a pooling or of a convolution with one filter for every channel by itself."""
    extent = attribute(node, "kernel_shape", [])
    if not plain(node) or any(attribute(node, "pads", [0])) or attribute(node, "ceil_mode", 0):
        return None
    if node.op_type == "AveragePool":
        return [np.full(length, 1 / length) for length in extent]
    weight = draft.value(node.input[1])
    if weight is None or len(node.input) > 2 or attribute(node, "group", 1) != channels or len(weight) != channels:
        return None
    if 1 not in weight.shape[2:] or (weight != weight[:1]).any():
        return None
    along, one = weight[0].ravel().astype(np.float64), np.ones(1)
    return [one, along] if weight.shape[2] == 1 else [along, one]
