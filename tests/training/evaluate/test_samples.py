from __future__ import annotations

import numpy as np

from training.bundling.samples import first_of_classes

LABELS = np.array([2, 2, 0, 1, 0, 3, 1])


def test_first_of_each_class_in_order() -> None:
    assert first_of_classes(LABELS, np.ones(7, bool), 10) == [0, 2, 3, 5]
    assert first_of_classes(LABELS, np.ones(7, bool), 2) == [0, 2]


def test_only_the_eligible_count() -> None:
    eligible = np.array([False, True, False, True, True, False, True])
    assert first_of_classes(LABELS, eligible, 10) == [1, 3, 4]
    assert first_of_classes(LABELS, np.zeros(7, bool), 10) == []
