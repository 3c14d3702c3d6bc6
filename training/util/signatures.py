"""Callables that are passed around: networks as functions, and receivers of progress."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

Predict = Callable[[Tensor], Tensor]
"""Images (N, C, H, W) in [0, 1] to logits (N, K)."""

Progress = Callable[[int, int], None]
"""Takes how much is done and how much there is in all."""

StepProgress = Callable[[str, int, int], None]
"""Takes the name of a step, how much of it is done and how much there is in all."""


def silent(*_: object) -> None:
    """Ignores progress."""
