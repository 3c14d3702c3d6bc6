"""Early stopping: which epoch was the best, and whether it is time to stop."""

from __future__ import annotations

from collections.abc import Sequence


def best_epoch(watched: Sequence[float]) -> int:
    """Index of the first of the largest values."""
    return max(range(len(watched)), key=lambda i: (watched[i], -i))


def exhausted(watched: Sequence[float], *, patience: int) -> bool:
    """Whether the last `patience` values are all no better than the best before them."""
    return bool(watched) and len(watched) - 1 - best_epoch(watched) >= patience
