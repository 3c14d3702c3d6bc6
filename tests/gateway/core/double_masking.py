"""Double masking and its attackers on images small enough to try every patch."""

from __future__ import annotations

from itertools import product

import numpy as np


def double_masked(labels: np.ndarray) -> int:
    """The label by double masking, after Algorithm 1 of PatchCleanser, of one image's labels (M, M).

    Those under every two masks, or without every two windows; under one of them on the diagonal.
    """
    first = np.diagonal(labels)
    majority = int(np.bincount(first).argmax())
    return next((int(vote) for i, vote in enumerate(first) if vote != majority and (labels[i] == vote).all()), majority)


def neighbours(image: np.ndarray, patch: int) -> np.ndarray:
    """Every image that differs inside one square of side `patch`, for pixels of three values."""
    made, side = [], len(image)
    for y, x in product(range(side - patch + 1), repeat=2):
        for values in product((0.0, 0.5, 1.0), repeat=patch * patch):
            other = image.copy()
            other[y : y + patch, x : x + patch] = np.reshape(values, (patch, patch))
            made.append(other)
    return np.stack(made)
