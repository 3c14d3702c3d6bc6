"""Conformal p-values where benign images come in groups of near copies: the frames of one physical sign, a patient.

Images of one group do not count as so many independent ones. With one image drawn from each of G groups,
(1 + #{groups whose image is at least as unusual}) / (G + 1) is a valid p-value of an image of a new group; the mean
over all such draws is (1 + sum over groups of the share of their images that are) / (G + 1), which needs no draw
(Dunn, Wasserman and Ramdas 2022, "Distribution-free prediction sets for two-layer hierarchical models", JASA 118: the
same mean of subsampled p-values; a mean of valid p-values is exactly valid up to a factor of 2 and, with many images a
group, nearly so up to 1: they agree). Where every image is its own group it is the ordinary conformal p-value.
"""

from __future__ import annotations

import numpy as np


class GroupedScores:
    """Benign scores (n,) in ascending order with their weights (n,): 1 over the images of their group."""

    def __init__(self, scores: np.ndarray, weights: np.ndarray, groups: int) -> None:
        self._scores = scores
        self._groups = groups
        self._at_least = np.append(np.cumsum(weights[::-1])[::-1], 0.0)

    def p_values(self, scores: np.ndarray) -> np.ndarray:
        """p-values (N,) of `scores` (N,), larger is more unusual; NaN is more unusual than any number."""
        first = np.searchsorted(self._scores, scores, side="left")
        return np.asarray(np.minimum((1.0 + self._at_least[first]) / (self._groups + 1.0), 1.0))

    def level(self, p: float) -> float:
        """The benign score above which, and only above which, inputs have the p-value `p` or less."""
        fits = 1.0 + self._at_least[1:] <= p * (self._groups + 1.0) * (1 + 1e-12)
        return float(self._scores[int(np.argmax(fits))]) if fits.any() else np.inf


def group_weights(groups: np.ndarray) -> np.ndarray:
    """1 over the number of images of each one's group, (n,) for groups (n,)."""
    _, index, counts = np.unique(groups, return_inverse=True, return_counts=True)
    return np.asarray(1.0 / counts[index])
