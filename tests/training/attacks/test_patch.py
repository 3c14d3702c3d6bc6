from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.training.toy import Linear
from training.attacks.margin import margin
from training.attacks.patch import Kind, patch_attack, random_patches
from training.models.resnet import SmallResNet
from training.util.module_modes import seeded


@pytest.mark.parametrize("side", [1, 4, 16])
def test_only_a_square_changes(trained: SmallResNet, test_images: tuple[Tensor, Tensor], side: int) -> None:
    x, y = (t[:6] for t in test_images)
    adv, mask = patch_attack(trained, x, y, side=side, places=2, probe_steps=2, steps=3, generator=seeded(0))
    assert set(mask.unique().tolist()) <= {0.0, 1.0}
    assert (mask.sum((1, 2)) == side * side).all()
    for m in mask:  # a full square, not that many pixels somewhere
        rows, columns = torch.nonzero(m.sum(1)).flatten(), torch.nonzero(m.sum(0)).flatten()
        assert len(rows) == len(columns) == side
        assert rows[-1] - rows[0] == columns[-1] - columns[0] == side - 1
    outside = (mask[:, None] == 0).expand_as(x)
    assert torch.equal(adv[outside], x[outside])
    assert adv.min() >= 0
    assert adv.max() <= 1
    assert not torch.equal(adv, x)


def test_linear_model_reaches_the_exact_solution() -> None:
    """Inside the square every pixel is 0 or 1 against the sign of W_y - W_other."""
    model = Linear(torch.randn(2, 3 * 64, generator=seeded(1)))
    x, y = torch.rand(5, 3, 8, 8), torch.tensor([0, 1, 0, 1, 1])
    adv, mask = patch_attack(model, x, y, side=3, generator=seeded(0))
    slope = (model.weight[y] - model.weight[1 - y]).detach().view_as(x)
    expected = torch.where(mask[:, None] > 0, (slope < 0).float(), x)
    torch.testing.assert_close(adv, expected, atol=1e-6, rtol=0)


def test_the_place_is_chosen() -> None:
    """Only one corner matters: with enough places tried, the square that is kept covers it."""
    weight = torch.zeros(2, 1, 8, 8)
    weight[0, 0, :4, :4] = 1
    weight[1, 0, :4, :4] = -1
    model, x, y = Linear(weight.flatten(1)), torch.ones(10, 1, 8, 8), torch.zeros(10, dtype=torch.long)
    _, one = patch_attack(model, x, y, side=4, places=1, step_size=0.5, generator=seeded(0))
    adv, many = patch_attack(model, x, y, side=4, places=40, step_size=0.5, generator=seeded(0))
    covered_one, covered_many = (m[:, :4, :4].sum((1, 2)) for m in (one, many))
    assert (covered_many >= covered_one).all()
    assert (covered_many >= 9).all()
    assert covered_many.mean() > 2 * covered_one.mean()
    torch.testing.assert_close(margin(model(adv), y), 2 * (16 - covered_many))


def test_longer_attack_is_no_weaker(trained: SmallResNet, test_images: tuple[Tensor, Tensor]) -> None:
    x, y = (t[:32] for t in test_images)
    margins = [
        margin(trained(patch_attack(trained, x, y, side=5, places=2, steps=steps, generator=seeded(0))[0]), y)
        for steps in (0, 5, 20)
    ]
    assert (margins[1] <= margins[0] + 1e-4).all()
    assert (margins[2] <= margins[1] + 1e-4).all()
    assert margins[2].mean() < margin(trained(x), y).mean()


def test_generator_decides_the_result(trained: SmallResNet, test_images: tuple[Tensor, Tensor]) -> None:
    x, y = (t[:4] for t in test_images)
    runs = [
        patch_attack(trained, x, y, side=4, places=2, probe_steps=1, steps=1, generator=seeded(s)) for s in (0, 0, 1)
    ]
    assert torch.equal(runs[0][0], runs[1][0])
    assert torch.equal(runs[0][1], runs[1][1])
    assert not torch.equal(runs[0][1], runs[2][1])


def test_low_frequency_reaches_the_corner_of_its_colours() -> None:
    """On a linear model each colour of the coarse grid is 0 or 1 against the sign of its share of the slope."""
    model = Linear(torch.randn(2, 3 * 64, generator=seeded(1)))
    x, y = torch.rand(5, 3, 8, 8), torch.tensor([0, 1, 0, 1, 1])
    adv, mask = patch_attack(model, x, y, side=5, kind="low_frequency", places=2, generator=seeded(0))
    slope = (model.weight[y] - model.weight[1 - y]).detach().view_as(x)
    for k in range(5):
        rows, columns = torch.nonzero(mask[k].sum(1)).flatten(), torch.nonzero(mask[k].sum(0)).flatten()
        basis = torch.eye(9).view(9, 1, 3, 3)
        blown = torch.nn.functional.interpolate(basis, (5, 5), mode="bilinear", align_corners=True)[:, 0]
        window = slope[k][:, rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        colours = (torch.einsum("cij,gij->cg", window, blown) < 0).float()
        torch.testing.assert_close(
            adv[k][:, rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1],
            torch.einsum("cg,gij->cij", colours, blown),
            atol=1e-5,
            rtol=0,
        )
    outside = (mask[:, None] == 0).expand_as(x)
    assert torch.equal(adv[outside], x[outside])


def test_low_frequency_is_smooth() -> None:
    x = torch.rand(4, 3, 16, 16)
    kinds: dict[Kind, bool] = {"noisy": False, "low_frequency": True}
    for kind, smooth in kinds.items():
        patches = random_patches(x, 9, kind, seeded(0))
        second = patches.content().diff(n=2, dim=3).abs()
        # Bilinear between three columns: no curvature but at the middle one.
        assert bool(second[..., [0, 1, 2, 4, 5, 6]].max() < 1e-5) is smooth


def test_a_patch_that_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="1 to 8"):
        random_patches(torch.rand(1, 3, 8, 9), 9, "noisy", None)
