from __future__ import annotations

import pytest
import torch
from torch import nn

from tests.training.toy import Linear, random_network
from training.analysis.faithfulness import (
    cascading_randomisation,
    centre_disc,
    deletion_insertion,
    points_inside,
    rank_correlation,
    ranks,
    share_inside,
    without_detail,
)
from training.util.module_modes import seeded


def test_ranks_with_ties_at_random() -> None:
    maps = torch.tensor([[[0.1, 0.9], [0.5, 0.2]], [[0.0, 0.0], [1.0, 0.0]]])
    found = ranks(maps, seeded(0))
    assert found[0].tolist() == [3, 0, 1, 2]
    assert found[1][2] == 0
    assert sorted(found[1].tolist()) == [0, 1, 2, 3]
    flat = torch.zeros(1, 8, 8)
    assert not torch.equal(ranks(flat, seeded(0)), ranks(flat, seeded(1)))


def one_pixel(side: int, row: int, column: int) -> nn.Module:
    """Two logits, the first large if one pixel is bright and the second constant."""
    weight = torch.zeros(2, side * side)
    weight[0, row * side + column] = 1000.0
    return Linear(weight, torch.tensor([-450.0, 0.0]))


def test_areas_by_hand() -> None:
    """The answer hangs on one bright pixel: deleted first it falls at once, inserted last it never comes."""
    side, steps = 4, 16
    x = torch.zeros(1, 1, side, side)
    x[0, 0, 1, 2] = 1.0
    network, label = one_pixel(side, 1, 2), torch.tensor([0])
    found = []
    for maps in (x[:, 0], -x[:, 0]):
        areas = deletion_insertion(network, x, label, maps, baseline="mean", steps=steps, generator=seeded(0))
        found.append([float(area[0]) for area in areas])
    fast_and_early, slow_and_late = found
    assert fast_and_early == pytest.approx([0.5 / steps, 1 - 0.5 / steps])
    assert slow_and_late == pytest.approx([1 - 0.5 / steps, 0.5 / steps])


def test_baselines_keep_the_mean_or_the_coarse_image() -> None:
    x = torch.rand(2, 3, 16, 16)
    assert torch.allclose(without_detail(x, "mean").mean((2, 3)), x.mean((2, 3)), atol=1e-6)
    assert without_detail(x, "blur").std() < 0.5 * x.std()


def test_shares_and_points() -> None:
    maps = torch.tensor([[[3.0, -5.0], [1.0, 0.0]], [[0.0, 0.0], [0.0, 0.0]]])
    region = torch.tensor([[[1.0, 1.0], [0.0, 0.0]]]).expand(2, -1, -1)
    assert share_inside(maps, region).tolist() == [0.75, 0.0]
    assert points_inside(maps, region).tolist() == [True, True]
    assert not points_inside(maps, 1 - region)[0]
    disc = centre_disc(32, 32, radius=0.35)
    assert disc.mean().item() == pytest.approx(3.1416 * 0.35**2, abs=0.01)
    assert torch.equal(disc, disc.flip(0).T)


def test_rank_correlation() -> None:
    a = torch.arange(9.0).view(1, 3, 3)
    assert rank_correlation(a, a**3)[0] == pytest.approx(1)
    assert rank_correlation(a, -a)[0] == pytest.approx(-1)
    assert rank_correlation(a, torch.ones(1, 3, 3))[0] == 0


def test_weights_are_reset_from_the_top_down_in_a_copy() -> None:
    network = random_network(0)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    seen: list[dict[str, bool]] = []

    def explain(of: nn.Module) -> torch.Tensor:
        own = of.state_dict()
        seen.append({key: bool(torch.equal(own[key], before[key])) for key in ("head.weight", "stem.0.weight")})
        return own["stem.0.weight"][:1, 0]

    rows = cascading_randomisation(network, explain, seed=0)
    assert [name for name, _ in rows] == ["head", "stages.2", "stages.1", "stages.0", "stem"]
    assert seen[1:] == [{"head.weight": False, "stem.0.weight": True}] * 4 + [
        {"head.weight": False, "stem.0.weight": False}
    ]
    assert [bool(values[0] == pytest.approx(1)) for _, values in rows] == [True] * 4 + [False]
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
