"""Making the batch free in a file that was exported for one: reshapes to sizes that were written down."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod


def batch_axis(first: Sequence[int], second: Sequence[int]) -> int | None:
    """The first axis in which the shapes of a tensor differ for two sizes of batch, None if they agree."""
    return next((i for i, (a, b) in enumerate(zip(first, second, strict=True)) if a != b), None)


def rebatched(
    target: Sequence[int], shape: Sequence[int], axis: int, factor: int, before: int | None
) -> tuple[list[int], int | None]:
    """The `target` of a reshape, written down for one batch, for `shape`, whose `axis` is `factor` times as long.

    `before` is how many entries of the axis and of those before it count faster than the batch does, None where the
    batch is outermost in its axis. The axis of the target that starts where the batch starts in memory takes the
    factor; where tokens before a batch of one become one axis with it, that axis does, and the second result is its
    `before`.
    """
    mine = [size // factor if i == axis else size for i, size in enumerate(shape)]
    sizes = [mine[i] if size == 0 else size for i, size in enumerate(target)]
    if -1 in sizes:
        sizes[sizes.index(-1)] = prod(mine) // -prod(sizes)
    starts = [prod(sizes[:j]) for j in range(len(sizes))]
    at = prod(mine[:axis]) if before is None else before
    place = starts.index(at) if at in starts else max(j for j, start in enumerate(starts) if start < at)
    minor = None
    if before is None and axis > 0 and mine[axis] == 1 and place > 0:
        joined = sizes[place - 1] == mine[axis - 1] and len(sizes) < len(mine)
        place, minor = (place - 1, at) if joined else (place, None)
    sizes[place] *= factor
    return sizes, minor


def expanded(target: Sequence[int], shape: Sequence[int], axis: int, factor: int) -> list[int]:
    """The `target` of an expansion, written down for one batch, for such a `shape`."""
    sizes, place = list(target), axis + len(target) - len(shape)
    if place >= 0 and sizes[place] * factor == shape[axis]:
        sizes[place] = shape[axis]
    return sizes
