"""Obstacles in training: a share of the batch behind one each, the rest to the bit, and any number of processes."""

import pytest
import torch

from training.attacks.obstacles import Draw
from training.loop import obstacles
from training.loop.obstacles import noisy_cover, smooth_cover, with_obstacles
from training.util.module_modes import seeded
from training.util.random_draws import shared


def grey(n: int = 700, side: int = 32) -> torch.Tensor:
    return 0.3 + 0.4 * torch.rand(n, 3, side, side, generator=seeded(1))


def test_a_share_of_the_batch_is_behind_an_obstacle_and_the_rest_as_it_was() -> None:
    x = grey()
    made = with_obstacles(x, seeded(0), fraction=0.3)
    hit = (made != x).flatten(1).any(1)
    assert 0.25 < hit.float().mean() < 0.35
    assert made.min() >= 0
    assert made.max() <= 1


def test_no_share_is_the_batch_to_the_bit_and_all_of_it_leaves_no_image() -> None:
    x = grey(64)
    assert torch.equal(with_obstacles(x, seeded(0), fraction=0.0), x)
    assert (with_obstacles(x, seeded(0), fraction=1.0) != x).flatten(1).any(1).all()


def test_every_family_is_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    count = len(obstacles._FAMILIES)
    marks = [lambda x, g, k=k: torch.full_like(x, k / count) for k in range(count)]
    monkeypatch.setattr(obstacles, "_FAMILIES", tuple(marks))
    made = with_obstacles(torch.ones(700, 3, 8, 8), seeded(0), fraction=1.0)
    found, times = made[:, 0, 0, 0].unique(return_counts=True)
    assert len(found) == count
    assert times.min() > 0.5 * 700 / count


@pytest.mark.parametrize("draw", [noisy_cover, smooth_cover])
@pytest.mark.parametrize("side", [16, 32, 48])
def test_covers_hide_a_few_hundredths_of_the_image(draw: Draw, side: int) -> None:
    x = torch.full((200, 3, side, side), 2.0)  # no colour that a cover may have
    share = (draw(x, seeded(0)) != x).all(1).float().mean((1, 2))
    assert share.min() > 0.01
    assert share.max() < 0.08


def test_processes_that_share_a_batch_see_what_one_would() -> None:
    x = grey(32)
    whole = with_obstacles(x, seeded(3), fraction=0.5)
    for rank in range(2):
        part = with_obstacles(x[rank::2], shared(seeded(3), rank=rank, world=2), fraction=0.5)
        assert torch.equal(part, whole[rank::2])
