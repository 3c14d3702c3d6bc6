"""Shares with intervals, and how well a score separates attacked images from benign ones."""

from __future__ import annotations

import numpy as np

RESAMPLES = 1000
LEVEL = 0.95


def share(which: np.ndarray, among: np.ndarray | None = None) -> float | None:
    """Share of True of `which` (N,) among the images marked by `among` (N,); None where none are."""
    chosen = which if among is None else which[among]
    return float(chosen.mean()) if len(chosen) else None


def interval(
    which: np.ndarray, group: np.ndarray, *, minus: np.ndarray | None = None, seed: int = 0
) -> tuple[float, float] | None:
    """95 % bootstrap interval over groups of the mean of `which` (N,), less that of `minus` (N,) on the same images.

    Groups (tracks, patients) are drawn with replacement (Efron and Tibshirani 1993, ch. 8); where every image is its
    own group that is the bootstrap by image. Where all images agree a bootstrap sees no spread: the end that they
    leave open is then the exact binomial one for as many images as there are groups. None without images.
    """
    if len(which) == 0:
        return None
    names, index = np.unique(group, return_inverse=True)
    size = np.bincount(index).astype(float)
    value = which.astype(float) - (0.0 if minus is None else minus.astype(float))
    total = np.bincount(index, weights=value)
    if np.all(value == value[0]):
        open_end = 1 - (1 - LEVEL) ** (1 / len(names))
        return float(max(value[0] - open_end, -1 if minus is not None else 0)), float(min(value[0] + open_end, 1))
    rng = np.random.default_rng(seed)
    drawn = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), RESAMPLES).astype(float)
    low, high = np.quantile((drawn @ total) / (drawn @ size), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def auroc(benign: np.ndarray, attacked: np.ndarray) -> float | None:
    """Probability that an attacked image's score exceeds a benign one's, ties half (Mann and Whitney 1947)."""
    if len(benign) == 0 or len(attacked) == 0:
        return None
    ordered = np.sort(benign)
    below = np.searchsorted(ordered, attacked, side="left")
    not_above = np.searchsorted(ordered, attacked, side="right")
    return float((below + not_above).mean() / 2 / len(benign))


def threshold_at(benign: np.ndarray, rate: float) -> float:
    """The lowest threshold above which at most `rate` of benign scores (n,) lie: larger scores are flagged."""
    allowed = int(np.floor(rate * len(benign) + 1e-9))
    return float(np.sort(benign)[len(benign) - 1 - allowed]) if allowed < len(benign) else -np.inf


def roc(benign: np.ndarray, attacked: np.ndarray, *, points: int = 60) -> list[tuple[float, float]]:
    """(false-positive rate, detection rate) from (0, 0) to (1, 1), on a logarithmic grid; empty without attacks."""
    if len(attacked) == 0:
        return []
    thresholds = [threshold_at(benign, rate) for rate in np.geomspace(1e-3, 1, points - 1)]
    found = {(float((benign > t).mean()), float((attacked > t).mean())) for t in thresholds}
    return [(0.0, 0.0), *sorted(found), (1.0, 1.0)]
