from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from studies.any_side import PARTS, covered, milliseconds
from training.util.module_modes import seeded


@pytest.mark.parametrize("side", [32, 100])
def test_noise_on_a_smooth_scene_is_covered(side: int) -> None:
    x = F.interpolate(torch.rand(4, 3, 3, 3, generator=seeded(0)), size=(side, side), mode="bilinear")
    hits, area = covered(x, "noisy", 0.05, seed=0)
    assert hits.all()
    assert (area < 0.2).all()


@pytest.mark.parametrize("name", PARTS)
def test_parts_are_exported_and_timed(name: str) -> None:
    assert 0 <= milliseconds(PARTS[name], 40) < 1000
