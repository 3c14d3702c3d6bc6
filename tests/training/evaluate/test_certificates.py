"""The unit of certificates: double masking by hand, and shares that must not contradict one another."""

from __future__ import annotations

import numpy as np
import pytest

from gateway.core.masks import MaskSet
from training.evaluate.harness.bench import Bench
from training.evaluate.measurements.certificates import Certificates, certificates, double_masking

MASKS = MaskSet(12, 12, 2, 2)


def refused(masks: list[np.ndarray]) -> np.ndarray:
    raise AssertionError(f"{len(masks)} masks were run although all agree")


def test_masks_that_agree_are_the_answer() -> None:
    assert double_masking(refused, MASKS, np.full(len(MASKS), 3)) == 3


@pytest.mark.parametrize(("second", "answer"), [([5, 5, 5], 5), ([5, 5, 1], 1), ([1, 1, 1], 1)])
def test_a_mask_that_differs_is_believed_if_every_second_mask_leaves_its_label(second: list[int], answer: int) -> None:
    asked = []

    def labels(masks: list[np.ndarray]) -> np.ndarray:
        asked.extend(masks)
        return np.array(second)

    assert double_masking(labels, MASKS, np.array([1, 5, 1, 1])) == answer
    assert len(asked) == len(MASKS) - 1
    hidden = MASKS.singles()[1] > 0
    assert all(mask[hidden].all() for mask in asked)


def test_of_two_that_differ_the_one_that_stands_is_believed() -> None:
    hidden = MASKS.singles()[2] > 0

    def labels(masks: list[np.ndarray]) -> np.ndarray:
        return np.array([7 if mask[hidden].all() else 1 for mask in masks])

    assert double_masking(labels, MASKS, np.array([1, 5, 7, 1])) == 7


def test_the_shares_do_not_contradict_one_another(shared: Bench) -> None:
    made = certificates(shared)
    found = made.section
    assert isinstance(found, Certificates)
    assert found.n == shared.settings.certified
    assert [each.patch for each in found.patches] == sorted({each.patch for each in found.patches}, reverse=True)
    for each in found.patches:
        assert each.proved <= each.agreed <= 1 - each.masked_errs
        assert each.proved <= 1 - each.double_masking_errs
        counted = sum(row.n * row.proved for row in each.by_class.values())
        assert counted == pytest.approx(found.n * each.proved)
    assert made.outcomes["certified_proved"].mean() == pytest.approx(found.default.proved)
    assert (made.outcomes["certified_proved"] <= made.outcomes["certified_agreed"]).all()
