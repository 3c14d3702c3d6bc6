"""Linear filters along rows and columns of images of a few channels, as matrix products."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from training.export.draft import Draft, Swaps, make, plain

# A filter becomes a product with a full matrix unless the image is longer than this many times the filter.
SPARSEST = 16
# What a node does along rows and along columns: matrices (made, taken), None where it does nothing.
Bands = list[np.ndarray | None]


def filters_as_products(draft: Draft, block: int) -> None:
    """Channelwise convolutions and poolings along one axis, edge padding included, as one product for each axis.

    Where channels are no multiple of `block`, ONNX Runtime computes them one pixel after the other.
    """
    swaps: Swaps = {}
    absorbed: set[ir.Node] = set()
    for node in reversed(draft.graph):
        if node.op_type == "Pad" or node in absorbed:
            continue
        total: Bands = [None, None]
        source: ir.Value | None = None
        step: ir.Node | None = node
        while step is not None and (bands := _bands(draft, step, block)) is not None:
            total = [b if a is None else a if b is None else a @ b for a, b in zip(total, bands, strict=True)]
            absorbed.add(step)
            source = step.inputs[0]
            alone = source is not None and len(source.uses()) == 1 and not source.is_graph_output()
            step = source.producer() if source is not None and alone else None
        if source is not None:
            swaps[node] = _products(draft, source, f"{node.outputs[0].name}", total)
    draft.replace(swaps)


def _products(draft: Draft, source: ir.Value, name: str, total: Bands) -> list[ir.Node]:
    """The tensor `name` as the matrix of the rows times `source` times the transposed matrix of the columns."""
    rows, columns = (None if matrix is None else matrix.astype(np.float32) for matrix in total)
    nodes = []
    if columns is not None:
        nodes.append(make("MatMul", [source, draft.constant(f"{name}_columns", columns.T)], f"{name}_by_columns"))
        source = nodes[0].outputs[0]
    if rows is not None:
        nodes.append(make("MatMul", [draft.constant(f"{name}_rows", rows), source]))
    return nodes or [make("Identity", [source])]


def _bands(draft: Draft, node: ir.Node, block: int) -> Bands | None:
    """What a node does as matrices; None if it is no such filter, or its channels are blocked."""
    if node.op_type not in ("Pad", "Conv", "AveragePool"):
        return None
    source = node.inputs[0]
    size = draft.image(source)
    if source is None or source.dtype != ir.DataType.FLOAT or size is None or size[0] % block == 0:
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


def _padding(draft: Draft, node: ir.Node, lengths: tuple[int, int]) -> Bands | None:
    """Repetition of the border pixels as matrices; None for padding of another kind or of other axes."""
    pads = draft.value(node.inputs[1])
    if (
        node.attributes.get_string("mode", "constant") != "edge"
        or pads is None
        or pads.size != 8
        or len(node.inputs) > 3
    ):
        return None
    before, after = pads[:4], pads[4:]
    if any(before[:2]) or any(after[:2]) or pads.min() < 0:
        return None
    return [
        np.eye(length)[np.clip(np.arange(-first, length + last), 0, length - 1)] if first or last else None
        for length, first, last in zip(lengths, before[2:], after[2:], strict=True)
    ]


def _taps(draft: Draft, node: ir.Node, channels: int) -> list[np.ndarray] | None:
    """Filters along rows and columns of a pooling or of a convolution with one filter for every channel by itself."""
    extent = node.attributes.get_ints("kernel_shape", [])
    if not plain(node) or any(node.attributes.get_ints("pads", [0])) or node.attributes.get_int("ceil_mode", 0) != 0:
        return None
    if node.op_type == "AveragePool":
        return [np.full(length, 1 / length) for length in extent]
    weight = draft.value(node.inputs[1])
    if (
        weight is None
        or len(node.inputs) > 2
        or node.attributes.get_int("group", 1) != channels
        or len(weight) != channels
    ):
        return None
    if 1 not in weight.shape[2:] or (weight != weight[:1]).any():
        return None
    along, one = weight[0].ravel().astype(np.float64), np.ones(1)
    return [one, along] if weight.shape[2] == 1 else [along, one]
