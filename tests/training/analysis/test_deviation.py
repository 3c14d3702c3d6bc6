from __future__ import annotations

import numpy as np
import pytest
import torch

from training.analysis.deviation import (
    centre_shift,
    map_deviation,
    response_deviation,
    top_overlap,
    vulnerability,
    vulnerability_interval,
)


def test_a_map_deviates_by_its_direction_alone() -> None:
    a = torch.tensor([[[1.0, 0.0]], [[1.0, 0.0]], [[3.0, 4.0]], [[0.0, 0.0]], [[0.0, 0.0]]])
    b = torch.tensor([[[5.0, 0.0]], [[0.0, 2.0]], [[4.0, 3.0]], [[0.0, 0.0]], [[0.0, 1.0]]])
    assert torch.allclose(map_deviation(a, b), torch.tensor([0.0, 1.0, 1 - 24 / 25, 0.0, 1.0]), atol=1e-6)
    assert torch.allclose(map_deviation(1e-22 * a, b), map_deviation(a, b), atol=1e-6)


def test_responses_deviate_relative_to_their_norm() -> None:
    a = torch.tensor([3.0, 4.0]).view(1, 2, 1, 1)
    assert response_deviation(a, a + torch.tensor([1.0, 0.0]).view(1, 2, 1, 1)).item() == pytest.approx(0.2)


def test_overlap_and_shift_of_maps() -> None:
    a, b = torch.zeros(1, 5, 5), torch.zeros(1, 5, 5)
    a[0, 0], b[0, 1] = 1.0, 1.0
    assert top_overlap(a, a).item() == 1
    assert top_overlap(a, b).item() == 0
    assert centre_shift(a, b).item() == pytest.approx(0.2)
    assert centre_shift(torch.zeros(1, 5, 5), torch.ones(1, 5, 5)).item() == pytest.approx(0.0, abs=1e-6)


def test_vulnerability_is_a_ratio_of_medians() -> None:
    attacked = np.array([[0.2, 0.0], [0.4, 0.0], [0.9, 0.0]])
    control = np.array([[0.1, 0.0], [0.1, 0.0], [0.3, 0.0]])
    assert vulnerability(attacked, control) == pytest.approx([4.0, 1.0], rel=1e-4)


def test_intervals_cover_the_ratio_and_groups_widen_them() -> None:
    rng = np.random.default_rng(0)
    base = rng.uniform(0.5, 1.5, 20).repeat(10)
    attacked, control = (4 * base * rng.uniform(0.99, 1.01, 200))[:, None], rng.uniform(0.9, 1.1, 200)[:, None]
    value = vulnerability(attacked, control)[0]
    singles = vulnerability_interval(attacked, control, np.arange(200))
    groups = vulnerability_interval(attacked, control, np.arange(20).repeat(10))
    for low, high in (singles, groups):
        assert low[0] <= value <= high[0]
    assert groups[1][0] - groups[0][0] > 1.5 * (singles[1][0] - singles[0][0])
    same = vulnerability_interval(control, control, np.arange(200))
    assert same[0][0] == same[1][0] == 1
