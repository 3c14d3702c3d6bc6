"""Patches that are no squares."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from training.attacks.margin import margin
from training.attacks.patch import Kind
from training.attacks.shapes import Outline, oblong, pair, shape_attack, strip


def left_right(x: Tensor) -> Tensor:
    """Logits (N, 2): which half is brighter."""
    halves = x.mean((1, 2)).unflatten(1, (2, -1)).mean(2)
    return 20 * halves


@pytest.mark.parametrize(("outline", "most"), [(strip, 48), (oblong, 50), (pair, 32)])
@pytest.mark.parametrize("kind", ["noisy", "low_frequency"])
def test_only_the_shape_changes_and_it_works(outline: Outline, most: int, kind: Kind) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(6, 3, 32, 32, generator=generator) * 0.1 + 0.45
    y = left_right(x).argmax(1)
    covered, shown = shape_attack(
        left_right, x, y, outline=outline, kind=kind, places=3, probe_steps=3, steps=10, generator=generator
    )
    assert torch.equal(covered.movedim(1, -1)[~shown], x.movedim(1, -1)[~shown])
    assert (shown.sum((1, 2)) <= most).all()
    assert 0 <= covered.min() <= covered.max() <= 1
    assert (margin(left_right(covered), y) < margin(left_right(x), y)).all()


def test_smooth_content_is_smooth() -> None:
    x, y = torch.full((2, 3, 32, 32), 0.5), torch.zeros(2, dtype=torch.long)
    covered, shown = shape_attack(
        left_right,
        x,
        y,
        outline=strip,
        kind="low_frequency",
        places=1,
        probe_steps=0,
        steps=0,
        generator=torch.Generator().manual_seed(1),
    )
    both = shown[:, :, 1:] & shown[:, :, :-1]
    steps = (covered[..., 1:] - covered[..., :-1]).abs().amax(1)
    assert steps[both].max() < 0.2
