from __future__ import annotations

import pytest
import torch

from training.defence.signals.views import SHIFTS, reference_views, shift


@pytest.mark.parametrize(("dy", "dx"), [(0, 0), (1, 0), (0, 1), (-1, 2), (3, -2), (-1, -1)])
def test_shift_moves_pixels_and_replicates_the_border(dy: int, dx: int) -> None:
    x = torch.rand(2, 3, 6, 7)
    moved = shift(x, dy, dx)
    for row in range(6):
        for column in range(7):
            source = x[:, :, min(max(row - dy, 0), 5), min(max(column - dx, 0), 6)]
            assert torch.equal(moved[:, :, row, column], source)


def test_views_are_stacked_view_by_view() -> None:
    x = torch.rand(3, 1, 5, 5)
    views = reference_views(x)
    assert views.shape == (len(SHIFTS) * 3, 1, 5, 5)
    for number, (dy, dx) in enumerate(SHIFTS):
        assert torch.equal(views[3 * number : 3 * number + 3], shift(x, dy, dx))
    assert not torch.equal(views[:3], x)


def test_constant_image_is_its_own_view() -> None:
    x = torch.full((1, 3, 8, 8), 0.3)
    assert torch.equal(reference_views(x), x.repeat(2, 1, 1, 1))
