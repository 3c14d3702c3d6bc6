"""Transposed convolutions as small ordinary ones: the gradient of a strided convolution without its slow operator."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx

from training.export.draft import Draft, Swaps, attribute, make, plain


@dataclass(frozen=True)
class Doubling:
    """A ConvTranspose that doubles height and width: its input and output, kernel (C, M, kh, kw), leading pads."""

    source: str
    name: str
    kernel: np.ndarray
    pads: tuple[int, int]


def transposed_as_phases(draft: Draft, block: int) -> None:
    """A stride-2 ConvTranspose, or the sum of two, as one small convolution for each parity of row and column.

    The phases have the multiply-accumulates of the original and no more. They are woven together with channels last,
    where rows and columns are whole stretches of memory; a pooling of one pixel takes the result into the blocked
    layout. Channels must be multiples of `block`.
    """
    swaps: Swaps = {}
    taken: set[str] = set()
    for node in reversed(draft.graph.node):  # a sum comes before its terms, which need no phases of their own
        name = node.output[0]
        parts = _doublings(draft, node) if name not in taken else None
        size = draft.image(name)
        if parts is None or size is None or any(part.kernel.shape[axis] % block for part in parts for axis in (0, 1)):
            continue
        woven = _weave(draft, name, parts, size)
        if woven is not None:
            swaps[name] = woven
            taken.update(part.name for part in parts)
    draft.replace(swaps)


def _doublings(draft: Draft, node: onnx.NodeProto) -> list[Doubling] | None:
    """The node itself, or both terms of a sum that alone reads them; None if any is something else."""
    terms = [node]
    if node.op_type == "Add":
        made = [draft.maker(name, "ConvTranspose") for name in node.input]
        terms = [term for term in made if term is not None and draft.readers[term.output[0]] == 1]
        if len(terms) != 2:
            return None
    parts = [_doubling(draft, term) for term in terms]
    known = [part for part in parts if part is not None]
    return known if len(known) == len(parts) else None


def _doubling(draft: Draft, node: onnx.NodeProto) -> Doubling | None:
    if node.op_type != "ConvTranspose" or len(node.input) > 2 or attribute(node, "group", 1) != 1:
        return None
    kernel, taken, made = draft.value(node.input[1]), draft.image(node.input[0]), draft.image(node.output[0])
    if kernel is None or taken is None or made is None or not plain(node, stride=2):
        return None
    if made[1:] != (2 * taken[1], 2 * taken[2]):
        return None
    top, left, *_ = attribute(node, "pads", [0, 0, 0, 0])
    return Doubling(node.input[0], node.output[0], kernel, (top, left))


def _weave(draft: Draft, name: str, parts: list[Doubling], size: tuple[int, int, int]) -> list[onnx.NodeProto] | None:
    """Nodes that make `name` (N, *size) from its four phases; None if one is empty or would have to be cropped."""
    channels, height, width = size
    nodes: list[onnx.NodeProto] = []
    rows: list[str] = []
    flat = draft.constant(f"{name}_row", np.array([0, height // 2, 1, width * channels], np.int64))
    for row in (0, 1):
        columns: list[str] = []
        for column in (0, 1):
            phase = _phase(draft, f"{name}_{row}{column}", parts, (row, column))
            if not phase:
                return None
            nodes += phase
            columns.append(phase[-1].output[0])
        nodes += [
            make("Concat", columns, f"{name}_row{row}", axis=1),
            make("Transpose", [f"{name}_row{row}"], f"{name}_row{row}_last", perm=[0, 2, 3, 1]),
            make("Reshape", [f"{name}_row{row}_last", flat], f"{name}_row{row}_flat"),
        ]
        rows.append(f"{name}_row{row}_flat")
    whole = draft.constant(f"{name}_whole", np.array([0, height, width, channels], np.int64))
    return [
        *nodes,
        make("Concat", rows, f"{name}_rows", axis=2),
        make("Reshape", [f"{name}_rows", whole], f"{name}_last"),
        make("Transpose", [f"{name}_last"], f"{name}_plain", perm=[0, 3, 1, 2]),
        make("AveragePool", [f"{name}_plain"], name, kernel_shape=[1, 1]),
    ]


def _phase(draft: Draft, name: str, parts: list[Doubling], parity: tuple[int, int]) -> list[onnx.NodeProto]:
    """Convolutions, and their sum, that make the outputs of this parity; empty if nothing reaches them."""
    nodes: list[onnx.NodeProto] = []
    for number, part in enumerate(parts):
        high, wide = (
            _taps(odd, length, pad) for odd, length, pad in zip(parity, part.kernel.shape[2:], part.pads, strict=True)
        )
        if not high or not wide:
            continue
        pads = [-high[0][0], -wide[0][0], high[-1][0], wide[-1][0]]
        if min(pads) < 0:
            return []
        picked = part.kernel[:, :, [tap for _, tap in high]][..., [tap for _, tap in wide]].swapaxes(0, 1)
        term = f"{name}_{number}"
        weight = draft.constant(f"{term}_weight", picked)
        nodes.append(make("Conv", [part.source, weight], term, kernel_shape=list(picked.shape[2:]), pads=pads))
    if len(nodes) > 1:
        nodes.append(make("Add", [node.output[0] for node in nodes], f"{name}_sum"))
    return nodes


def _taps(parity: int, length: int, pad: int) -> list[tuple[int, int]]:
    """(offset in the input, position in the kernel) of what reaches outputs 2 j + parity, in order of the offset.

    Output o of a transposed convolution with stride 2 is the sum over inputs i of x[i] w[o - 2 i + pad].
    """
    return sorted(((parity + pad - tap) // 2, tap) for tap in range(length) if (parity + pad - tap) % 2 == 0)
