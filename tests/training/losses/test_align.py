from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.training.toy import Linear
from training.losses.align import align_probe
from training.losses.input_gradient import gradient_penalty
from training.util.module_modes import seeded

SHAPE = (2, 4, 4)
Y = torch.tensor([0])


def linear(difference: Tensor) -> Linear:
    """Two classes whose label gradient is `difference` (2, 4, 4), up to its size."""
    return Linear(torch.stack([difference.flatten(), torch.zeros(32)]))


def penalty(difference: Tensor, saliency: Tensor, grid: int) -> float:
    probe = align_probe(Y, saliency[None], grid=grid)
    return gradient_penalty(probe, linear(difference), torch.rand(1, *SHAPE), method="double_backprop").item()


def test_linear_model_in_closed_form() -> None:
    difference, saliency = torch.randn(SHAPE, generator=seeded(0)), torch.rand(4, 4, generator=seeded(1))
    found = difference.abs().sum(0)
    cells = [found[i : i + 2, j : j + 2].mean() for i in (0, 2) for j in (0, 2)]
    wanted = [saliency[i : i + 2, j : j + 2].mean() for i in (0, 2) for j in (0, 2)]
    cosine = torch.cosine_similarity(torch.stack(cells), torch.stack(wanted), dim=0)
    assert penalty(difference, saliency, 2) == pytest.approx(1 - cosine.item(), abs=1e-6)


def test_ends() -> None:
    """0 where the teacher looks and in proportion, whatever the sign and size; 1 where the teacher never looks."""
    saliency = torch.rand(4, 4, generator=seeded(1))
    signs = torch.randn(SHAPE, generator=seeded(2)).sign()
    for size in (0.01, 1.0, 100.0):
        assert penalty(size * signs * saliency, saliency, 4) == pytest.approx(0, abs=1e-6)
    left, right = torch.zeros(4, 4), torch.zeros(4, 4)
    left[:, :2] = 1
    right[:, 2:] = 1
    assert penalty(left.expand(SHAPE), right, 2) == pytest.approx(1)


def test_only_cells_count() -> None:
    """Moving saliency within a cell changes nothing."""
    difference, saliency = torch.randn(SHAPE, generator=seeded(0)), torch.rand(4, 4, generator=seeded(1))
    moved = saliency.clone()
    moved[:2, :2] = moved[:2, :2].flip(0)
    assert penalty(difference, moved, 2) == pytest.approx(penalty(difference, saliency, 2))
    assert penalty(difference, moved, 4) != pytest.approx(penalty(difference, saliency, 4), abs=1e-4)
