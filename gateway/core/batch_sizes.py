"""Which batch sizes pay, by how long batches of each take."""

from __future__ import annotations

from collections.abc import Mapping

_FEW = 4


def worthwhile(seconds: Mapping[int, float]) -> tuple[int, ...]:
    """Of batch sizes, by the seconds that a batch takes: those up to the smallest that is as good by image as the best.

    Within 5 %, which is how far such measurements can be trusted, and never without those up to 4.
    """
    each = {size: seconds[size] / size for size in sorted(seconds)}
    enough = 1.05 * min(each.values())
    last = next(size for size, one in each.items() if one <= enough)
    return tuple(size for size in each if size <= max(last, _FEW))
