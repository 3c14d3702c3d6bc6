"""Images dealt to splits: whole groups, so that no two splits hold nearly the same image."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from training.errors import DataError


def deal(
    y: np.ndarray,
    group: np.ndarray,
    *,
    fractions: Sequence[float],
    seed: int,
    names: Sequence[str] | None = None,
    pool: bool = False,
) -> list[np.ndarray]:
    """Index arrays of as many parts as `fractions`: whole groups, stratified by class, each class in every part.

    A fraction 0 is an empty part. With `pool` the classes that are too small for that (`scarce`) are dealt together,
    as if they were one, with the next smallest where they alone have fewer groups than there are parts; otherwise
    `DataError` is raised where one has fewer groups than parts. It is also raised where a group has more than one
    class: it would be dealt twice.
    """
    if not all(fractions):
        filled = iter(deal(y, group, fractions=[f for f in fractions if f], seed=seed, names=names, pool=pool))
        return [next(filled) if fraction else np.arange(0) for fraction in fractions]
    rng = np.random.default_rng(seed)
    parts: list[list[int]] = [[] for _ in fractions]
    if len(np.unique(np.stack([group, y]), axis=1).T) > len(np.unique(group)):
        raise DataError("a group has images of two classes; groups must be of one class each")
    together = _pooled(y, group, fractions) if pool else set()
    strata = [(label, y == label) for label in np.unique(y) if label not in together]
    if together:
        strata.append((-1, np.isin(y, list(together))))
    for label, members in strata:
        groups = rng.permutation(np.unique(group[members]))
        if len(groups) < len(parts):
            name = label if names is None else repr(names[label])
            whose = f"class {name} has" if label >= 0 else "there are"
            raise DataError(
                f"{whose} {len(groups)} group(s) of images (a track, or images that are nearly the same, are one); "
                f"{len(parts)} are needed for disjoint splits"
            )
        counts = [max(1, round(fraction * len(groups))) for fraction in fractions[1:]]
        while sum(counts) >= len(groups):  # rounding of few groups must leave one for the first part
            largest = max(counts)
            counts[len(counts) - 1 - counts[::-1].index(largest)] -= 1
        cuts = len(groups) - np.cumsum(counts[::-1])[::-1]
        for part, some in zip(parts, np.split(groups, cuts), strict=True):
            part.extend(some.tolist())
    return [np.flatnonzero(np.isin(group, part)) for part in parts]


def _pooled(y: np.ndarray, group: np.ndarray, fractions: Sequence[float]) -> set[int]:
    """The `scarce` classes, and the next smallest until all of them have a group for each part."""
    labels, counts = _groups_by_class(y, group)
    order = np.argsort(counts, kind="stable")
    number = len(scarce(y, group, fractions))
    while 0 < number < len(order) and counts[order[:number]].sum() < len(fractions):
        number += 1
    return set(labels[order[:number]].tolist())


def scarce(y: np.ndarray, group: np.ndarray, fractions: Sequence[float]) -> np.ndarray:
    """Classes of so few groups that the smallest part's fraction of them is none."""
    labels, counts = _groups_by_class(y, group)
    return np.asarray(labels[counts * min(fractions) < 0.5])


def _groups_by_class(y: np.ndarray, group: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    labels = np.unique(y)
    return labels, np.array([len(np.unique(group[y == label])) for label in labels])
