"""Transposed convolutions as small ordinary ones: the gradient of a strided convolution without its slow operator."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from training.export.draft import Draft, Swaps, make, plain


@dataclass(frozen=True)
class Doubling:
    """A ConvTranspose that doubles height and width: the node, its kernel (C, M, kh, kw), its leading pads.

    If it is by channel (`group` is C) the kernel is (C, 1, kh, kw).
    """

    node: ir.Node
    kernel: np.ndarray
    pads: tuple[int, int]
    group: int

    def blocked(self, block: int) -> bool:
        """Whether the numbers of channels, taken and made, are multiples of `block`."""
        taken, made = self.kernel.shape[:2]
        return taken % block == 0 and (made % block == 0 or self.group == taken)


@dataclass(frozen=True)
class Term:
    """A stride-1 convolution that gives one phase of a `Doubling`: kernel (M, C / group, h, w), pads on all sides."""

    source: ir.Value | None
    kernel: np.ndarray
    pads: list[int]
    group: int


def transposed_as_phases(draft: Draft, block: int) -> None:
    """A stride-2 ConvTranspose, or the sum of two, as one small convolution for each parity of row and column.

    The phases have the multiply-accumulates of the original and no more. They are woven together with channels last,
    where rows and columns are whole stretches of memory; a pooling of one pixel takes the result into the blocked
    layout. Channels must be multiples of `block`.
    """
    swaps: Swaps = {}
    taken: set[ir.Node] = set()
    for node in reversed(draft.graph):  # a sum comes before its terms, which need no phases of their own
        parts = _doublings(draft, node) if node not in taken else None
        size = draft.image(node.outputs[0])
        if parts is None or size is None or not all(part.blocked(block) for part in parts):
            continue
        phases = [[_terms(parts, (row, column)) for column in (0, 1)] for row in (0, 1)]
        if all(terms for row in phases for terms in row):
            swaps[node] = _weave(draft, f"{node.outputs[0].name}", phases, size)
            taken.update(part.node for part in parts)
    draft.replace(swaps)


def _doublings(draft: Draft, node: ir.Node) -> list[Doubling] | None:
    """The node itself, or both terms of a sum that alone reads them; None if any is something else."""
    terms = [node]
    if node.op_type == "Add":
        made = [draft.maker(value, "ConvTranspose") for value in node.inputs]
        terms = [term for term in made if term is not None and _read_once(term.outputs[0])]
        if len(terms) != 2:
            return None
    parts = [_doubling(draft, term) for term in terms]
    known = [part for part in parts if part is not None]
    return known if len(known) == len(parts) else None


def _read_once(value: ir.Value) -> bool:
    return len(value.uses()) == 1 and not value.is_graph_output()


def _doubling(draft: Draft, node: ir.Node) -> Doubling | None:
    if node.op_type != "ConvTranspose" or len(node.inputs) > 2:
        return None
    kernel, taken, made = draft.value(node.inputs[1]), draft.image(node.inputs[0]), draft.image(node.outputs[0])
    if kernel is None or taken is None or made is None or not plain(node, stride=2):
        return None
    group = node.attributes.get_int("group", 1)
    if made[1:] != (2 * taken[1], 2 * taken[2]) or (group != 1 and not group == taken[0] == made[0]):
        return None
    top, left, *_ = node.attributes.get_ints("pads", [0, 0, 0, 0])
    return Doubling(node, kernel, (top, left), group)


def _weave(draft: Draft, name: str, phases: list[list[list[Term]]], size: tuple[int, int, int]) -> list[ir.Node]:
    """Nodes that make the tensor `name` (N, *size) from its four phases."""
    channels, height, width = size
    nodes: list[ir.Node] = []
    rows: list[ir.Value] = []
    flat = draft.constant(f"{name}_row", np.array([0, height // 2, 1, width * channels], np.int64))
    for row in (0, 1):
        columns: list[ir.Value] = []
        for column in (0, 1):
            nodes += _phase(draft, f"{name}_{row}{column}", phases[row][column])
            columns += nodes[-1].outputs
        beside = make("Concat", columns, f"{name}_row{row}", axis=1)
        last = make("Transpose", beside.outputs, f"{name}_row{row}_last", perm=[0, 2, 3, 1])
        nodes += [beside, last, make("Reshape", [*last.outputs, flat], f"{name}_row{row}_flat")]
        rows += nodes[-1].outputs
    whole = draft.constant(f"{name}_whole", np.array([0, height, width, channels], np.int64))
    below = make("Concat", rows, f"{name}_rows", axis=2)
    last = make("Reshape", [*below.outputs, whole], f"{name}_last")
    woven = make("Transpose", last.outputs, f"{name}_plain", perm=[0, 3, 1, 2])
    return [*nodes, below, last, woven, make("AveragePool", woven.outputs, kernel_shape=[1, 1])]


def _phase(draft: Draft, name: str, terms: list[Term]) -> list[ir.Node]:
    """The convolutions of a phase, and their sum; the last node makes it."""
    nodes = []
    for number, term in enumerate(terms):
        weight = draft.constant(f"{name}_{number}_weight", term.kernel)
        extent = term.kernel.shape[2:]
        shape: dict[str, Any] = {"kernel_shape": extent, "pads": term.pads}
        if term.group > 1:
            shape["group"] = term.group
        nodes.append(make("Conv", [term.source, weight], f"{name}_{number}", **shape))
    if len(nodes) > 1:
        nodes.append(make("Add", [node.outputs[0] for node in nodes], f"{name}_sum"))
    return nodes


def _terms(parts: list[Doubling], parity: tuple[int, int]) -> list[Term]:
    """What makes the outputs of this parity; empty if nothing reaches them, or if a term would have to be cropped."""
    terms = []
    for part in parts:
        high, wide = (
            _taps(odd, length, pad) for odd, length, pad in zip(parity, part.kernel.shape[2:], part.pads, strict=True)
        )
        if not high or not wide:
            continue
        pads = [-high[0][0], -wide[0][0], high[-1][0], wide[-1][0]]
        if min(pads) < 0:
            return []
        picked = part.kernel[:, :, [tap for _, tap in high]][..., [tap for _, tap in wide]]
        kernel = picked if part.group > 1 else picked.swapaxes(0, 1)
        terms.append(Term(part.node.inputs[0], kernel, pads, part.group))
    return terms


def _taps(parity: int, length: int, pad: int) -> list[tuple[int, int]]:
    """(offset in the input, position in the kernel) of what reaches outputs 2 j + parity, in order of the offset.

    Output o of a transposed convolution with stride 2 is the sum over inputs i of x[i] w[o - 2 i + pad].
    """
    return sorted(((parity + pad - tap) // 2, tap) for tap in range(length) if (parity + pad - tap) % 2 == 0)
