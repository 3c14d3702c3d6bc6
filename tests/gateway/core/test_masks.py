from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.core.masks import MaskSet, axis_masks, default_k, default_patch, largest_patch


@st.composite
def axes(draw: st.DrawFn) -> tuple[int, int, int]:
    n = draw(st.integers(1, 300))
    return n, draw(st.integers(1, n)), draw(st.integers(1, 12))


@given(axes())
def test_every_place_of_a_patch_is_inside_a_mask(axis: tuple[int, int, int]) -> None:
    n, patch, k = axis
    masks = axis_masks(n, patch, k)
    assert len(masks.starts) <= k
    assert len(set(masks.starts)) == len(masks.starts)
    assert masks.starts[0] == 0
    assert masks.starts[-1] + masks.side == n
    for place in range(n - patch + 1):
        assert any(start <= place and place + patch <= start + masks.side for start in masks.starts)


@given(st.integers(4, 24), st.integers(4, 24), st.data())
def test_every_square_is_hidden_by_one_mask(height: int, width: int, data: st.DataObject) -> None:
    patch = data.draw(st.integers(1, largest_patch(height, width)))
    masks = MaskSet(height, width, patch, data.draw(st.integers(1, 5)))
    singles = masks.singles()
    assert len(singles) == len(masks) == len(masks.boxes)
    for y in range(height - patch + 1):
        for x in range(width - patch + 1):
            assert (singles[:, y : y + patch, x : x + patch].min((1, 2)) == 1).any()


def test_the_masks_of_the_default_certificates() -> None:
    small = MaskSet(32, 32, default_patch(32, 32), default_k(32, 32))
    assert (small.patch, small.k, len(small), small.forwards) == (5, 4, 16, 136)
    assert small.rows.starts == (0, 7, 14, 21)
    assert small.rows.side == 11
    large = MaskSet(224, 224, default_patch(224, 224), default_k(224, 224))
    assert (large.patch, large.k, len(large), large.forwards) == (32, 3, 9, 45)
    assert large.share == pytest.approx(0.02, abs=5e-4)
    assert small.union((0, 1)).sum() == 11 * 18
    assert len(small.pairs) == 120


def test_masks_are_not_changed_by_those_who_read_them() -> None:
    with pytest.raises(ValueError, match="read-only"):
        MaskSet(8, 8, 2, 2).singles()[0, 0, 0] = 2


@pytest.mark.parametrize(("n", "patch", "k"), [(8, 0, 2), (8, 9, 2), (8, 2, 0)])
def test_what_no_mask_set_has_is_refused(n: int, patch: int, k: int) -> None:
    with pytest.raises(ValueError, match="patch must be 1 to 8 and k at least 1"):
        axis_masks(n, patch, k)


def test_the_largest_patch_leaves_something_to_see() -> None:
    assert largest_patch(32, 20) == 10
    assert default_patch(4, 400) == 2
    assert np.all(MaskSet(1, 1, 1, 3).singles() == 1)
