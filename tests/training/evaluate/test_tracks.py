from __future__ import annotations

import numpy as np

from studies.tracks import measure, pairs, standard_error
from training.data.dataset import Split
from training.evaluate.harness.tracks import inferred_tracks


def filmed(tracks: int = 6, frames: int = 8, *, size: int = 20, seed: int = 0) -> Split:
    """Frames of `tracks` random objects of each of two classes, in random order, brighter and darker, with noise."""
    rng = np.random.default_rng(seed)
    objects = rng.uniform(60, 160, (2 * tracks, 1, size, size, 3))
    light = rng.uniform(0.7, 1.3, (2 * tracks, frames, 1, 1, 1))
    x = (objects * light + rng.normal(0, 8, (2 * tracks, frames, size, size, 3))).clip(0, 255).astype(np.uint8)
    group = np.repeat(np.arange(2 * tracks), frames)
    order = rng.permutation(len(group))
    return Split(x.reshape(-1, size, size, 3)[order], (group // tracks)[order], group[order])


def test_frames_of_an_object_are_found_together() -> None:
    split = filmed()
    found = inferred_tracks(split.x, split.y, frames=8)
    assert pairs(split.group, found) == (1.0, 1.0)
    assert len(np.unique(found)) == 12


def test_no_track_has_two_classes_and_a_small_class_is_one() -> None:
    split = filmed()
    lone = split.take(np.flatnonzero((split.y == 0) | (split.group == 7)))
    found = inferred_tracks(lone.x, lone.y, frames=8)
    assert len(np.unique(np.stack([found, lone.y]), axis=1).T) == len(np.unique(found)) == 7


def test_pairs_that_are_right_and_pairs_that_are_found() -> None:
    recall, precision = pairs(np.array([0, 0, 0, 1, 1]), np.array([0, 0, 1, 1, 1]))
    assert (recall, precision) == (0.5, 0.5)
    assert pairs(np.array([0, 0, 1, 1]), np.zeros(4, int)) == (1.0, 1 / 3)


def test_an_outcome_that_tracks_share_has_a_wider_error() -> None:
    outcome, group = np.repeat([1.0, 0.0, 0.0, 1.0], 25), np.repeat(np.arange(4), 25)
    assert np.isclose(standard_error(outcome, np.arange(100)), 0.5 / np.sqrt(99))
    assert np.isclose(standard_error(outcome, group), 0.5 / np.sqrt(3))


def test_a_comparison_has_every_outcome() -> None:
    split = filmed()
    found = measure(split, {"errs": (split.group < 3).astype(float)})
    assert found["n"] == 96
    assert found["standard_errors"]["errs"]["track"] == found["standard_errors"]["errs"]["inferred"]
