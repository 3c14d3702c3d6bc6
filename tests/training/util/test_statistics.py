from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from training.util.statistics import auroc, interval, roc, share, threshold_at


def test_share_among() -> None:
    which = np.array([True, False, True, True])
    assert share(which) == 0.75
    assert share(which, np.array([True, True, False, False])) == 0.5
    assert share(which, np.zeros(4, bool)) is None


def known(which: np.ndarray, group: np.ndarray, minus: np.ndarray | None = None) -> tuple[float, float]:
    found = interval(which, group, minus=minus)
    assert found is not None
    return found


def test_interval_by_image_is_that_of_a_share() -> None:
    """A share's standard error is sqrt(p (1 - p) / n); the bootstrap's interval is about 1.96 of them wide each way."""
    which = np.arange(400) < 100
    low, high = known(which, np.arange(400))
    assert (high - low) / 2 == pytest.approx(1.96 * np.sqrt(0.25 * 0.75 / 400), rel=0.1)
    assert low < 0.25 < high


def test_alike_images_of_a_group_make_it_wider() -> None:
    which = np.repeat(np.arange(40) < 10, 10)
    by_image, by_group = known(which, np.arange(400)), known(which, np.repeat(np.arange(40), 10))
    ratio = (by_group[1] - by_group[0]) / (by_image[1] - by_image[0])
    assert ratio == pytest.approx(np.sqrt(10), rel=0.15)


def test_images_that_all_agree_leave_an_end_open() -> None:
    low, high = known(np.ones(30, bool), np.arange(30))
    assert high == 1
    assert low == pytest.approx(0.05 ** (1 / 30))  # 30 of 30 have probability 5 % there
    assert known(np.ones(30, bool), np.zeros(30))[0] == pytest.approx(0.05)  # one group
    assert interval(np.zeros(0, bool), np.zeros(0)) is None


def test_a_difference_is_paired() -> None:
    which = np.arange(200) % 2 == 0
    assert interval(which, np.arange(200), minus=which) is not None
    low, high = known(which, np.arange(200), minus=which & (np.arange(200) < 100))
    assert 0 < low < 0.25 < high


def test_auroc() -> None:
    assert auroc(np.array([0.0, 1.0]), np.array([2.0, 3.0])) == 1
    assert auroc(np.array([0.0, 1.0]), np.array([0.0, 1.0])) == 0.5
    assert auroc(np.array([0.0, 2.0]), np.array([1.0])) == 0.5
    assert auroc(np.array([1.0, 1.0]), np.array([1.0])) == 0.5
    assert auroc(np.array([1.0]), np.array([])) is None


@pytest.mark.parametrize("rate", [0.0, 0.01, 0.05, 0.1])
def test_a_threshold_flags_the_rate_and_no_more(rate: float) -> None:
    benign = np.random.default_rng(0).permutation(1000).astype(float)
    assert (benign > threshold_at(benign, rate)).mean() == rate


def test_ties_are_never_flagged_beyond_the_rate() -> None:
    benign = np.array([0.0] * 90 + [1.0] * 10)
    assert (benign > threshold_at(benign, 0.05)).mean() == 0


def test_roc_ascends_between_its_corners() -> None:
    rng = np.random.default_rng(0)
    points = roc(rng.normal(0, 1, 500), rng.normal(1, 1, 300))
    assert (points[0], points[-1]) == ((0, 0), (1, 1))
    assert all(a[0] <= b[0] and a[1] <= b[1] for a, b in pairwise(points))
