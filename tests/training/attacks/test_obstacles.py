"""Attacks without gradients: obstacles at random, the worst of a few, and few pixels."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from training.attacks import obstacles
from training.attacks.margin import margin
from training.attacks.obstacles import few_pixels, rectangles, turned, worst_of

FAMILIES = [obstacles.bars, obstacles.dull_sticker, obstacles.half_shadow, obstacles.colour_cast, obstacles.rain]


def brightness(x: Tensor) -> Tensor:
    """Logits (N, 2): dark or bright."""
    mean = x.mean((1, 2, 3))
    return torch.stack([-mean, mean], 1)


@pytest.mark.parametrize("draw", FAMILIES)
@pytest.mark.parametrize("shape", [(5, 3, 32, 32), (4, 1, 16, 24), (2, 3, 64, 64)])
def test_every_image_has_an_obstacle_of_its_own(draw: obstacles.Draw, shape: tuple[int, ...]) -> None:
    x = torch.full(shape, 0.55)
    drawn = draw(x, torch.Generator().manual_seed(0))
    assert drawn.shape == x.shape
    assert 0 <= drawn.min() <= drawn.max() <= 1
    changed = (drawn != x).any(1).flatten(1)
    assert changed.any(1).all()
    assert len(torch.unique(drawn.flatten(1), dim=0)) == len(x)
    assert torch.equal(drawn, draw(x, torch.Generator().manual_seed(0)))
    assert torch.equal(x, torch.full(shape, 0.55))


def test_rectangles_are_whole_and_reach_every_border() -> None:
    x, generator = torch.zeros(4000, 3, 8, 10), torch.Generator().manual_seed(1)
    found = rectangles(x, torch.full((4000,), 3), torch.full((4000,), 4), generator)
    assert (found.sum((1, 2)) == 12).all()
    assert found.any(0).all()
    bars = turned(x, 2, 6, generator)
    assert (bars.sum((1, 2)) == 12).all()
    assert {tuple(sorted((int(bar.any(1).sum()), int(bar.any(0).sum())))) for bar in bars} == {(2, 6)}


def test_the_worst_draw_is_kept() -> None:
    x, y = torch.full((6, 3, 16, 16), 0.6), torch.ones(6, dtype=torch.long)
    once, often = (
        margin(
            brightness(worst_of(brightness, x, y, obstacles.half_shadow, tries, torch.Generator().manual_seed(2))), y
        )
        for tries in (1, 20)
    )
    assert (often <= once).all()
    assert (often < once).any()
    with pytest.raises(ValueError, match="at least one"):
        worst_of(brightness, x, y, obstacles.rain, 0)


def test_few_pixels_change_no_more_and_find_what_counts() -> None:
    weights = torch.zeros(8, 8)
    weights[2, 3], weights[5, 6] = 4.0, 4.0

    def predict(x: Tensor) -> Tensor:
        seen = (x.mean(1) * weights).sum((1, 2))
        return torch.stack([seen, 4.0 - seen], 1)

    x, y = torch.full((3, 3, 8, 8), 0.6), torch.zeros(3, dtype=torch.long)
    drawn = few_pixels(predict, x, y, count=3, queries=200, generator=torch.Generator().manual_seed(3))
    assert ((drawn != x).any(1).sum((1, 2)) <= 3).all()
    assert ((drawn == x) | (drawn == 0) | (drawn == 1)).all()
    assert (margin(predict(drawn), y) < margin(predict(x), y)).all()
    with pytest.raises(ValueError, match="65 pixels"):
        few_pixels(predict, x, y, count=65)
