from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from training.imaging.blur import gaussian_blur
from training.losses.perturbation_saliency import important_mask, perturbation_saliency
from training.util.module_modes import seeded


@pytest.mark.parametrize(("row", "column"), [(1, 5), (4, 4), (7, 0)])
def test_saliency_peaks_where_the_model_looks(row: int, column: int) -> None:
    """A model that reads one 4x4 cell of a 32x32 image."""

    def predict(x: Tensor) -> Tensor:
        cell = x[:, :, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4]
        return torch.stack([(cell * cell).sum((1, 2, 3)), cell[:, 0].sum((1, 2))], 1)

    saliency = perturbation_saliency(predict, torch.rand(2, 3, 32, 32, generator=seeded(0)), grid=8)
    assert saliency.shape == (2, 8, 8)
    assert (saliency.flatten(1).argmax(1) == 8 * row + column).all()


def test_saliency_in_closed_form() -> None:
    """f = w . x is linear, so P = 1/2 (w . ((blur - x) m))^2 exactly."""
    x, w = torch.rand(1, 1, 8, 8, generator=seeded(0)), torch.randn(64, 1, generator=seeded(1))
    saliency = perturbation_saliency(lambda z: z.flatten(1) @ w, x, grid=2, sigma=1.0)
    position = torch.arange(8.0)
    bump = torch.exp(-((position[:, None] - 1.5) ** 2 + (position[None] - 5.5) ** 2) / (2 * 2.0**2))
    moved = ((gaussian_blur(x, 1.0) - x) * bump).flatten(1) @ w
    torch.testing.assert_close(saliency[0, 0, 1], 0.5 * moved[0, 0] ** 2, rtol=1e-3, atol=1e-7)


def test_constant_image_and_constant_model_have_no_saliency() -> None:
    constant = perturbation_saliency(lambda z: z.flatten(1)[:, :3], torch.full((1, 3, 9, 9), 0.3), grid=3)
    assert constant.abs().max() < 1e-10
    blind = perturbation_saliency(lambda z: torch.ones(len(z), 2), torch.rand(1, 3, 9, 9), grid=3)
    assert blind.eq(0).all()


@pytest.mark.parametrize("sigma", [0.5, 1.5, 3.0])
def test_blur_keeps_constants_and_mass(sigma: float) -> None:
    constant = torch.full((1, 3, 20, 17), 0.37)
    torch.testing.assert_close(gaussian_blur(constant, sigma), constant)
    point = torch.zeros(1, 2, 41, 41)
    point[:, :, 20, 20] = 1  # farther than 3 sigma from every border
    spread = gaussian_blur(point, sigma)
    torch.testing.assert_close(spread.sum((2, 3)), torch.ones(1, 2))
    assert spread.max() < 0.8
    torch.testing.assert_close(spread, spread.transpose(2, 3))
    torch.testing.assert_close(spread, spread.flip(2))


def test_blur_has_the_width_asked_for() -> None:
    point = torch.zeros(1, 1, 61, 61)
    point[0, 0, 30, 30] = 1
    rows = gaussian_blur(point, 3.0)[0, 0].sum(1)
    variance = (rows * (torch.arange(61.0) - 30) ** 2).sum()
    assert float(variance) == pytest.approx(9, rel=0.05)  # cut off at 3 sigma


def test_blur_does_not_mix_channels() -> None:
    x = torch.zeros(1, 3, 9, 9)
    x[:, 1] = torch.rand(9, 9)
    blurred = gaussian_blur(x, 1.0)
    assert blurred[:, [0, 2]].eq(0).all()
    assert blurred[:, 1].gt(0).all()


@pytest.mark.parametrize("mass", [0.25, 0.5, 0.9])
def test_mask_holds_the_mass_with_the_fewest_pixels(mass: float) -> None:
    saliency = torch.rand(5, 6, 6, generator=seeded(0), dtype=torch.float64) ** 3
    mask = important_mask(saliency, size=(6, 6), mass=mass)
    for m, s in zip(mask, saliency, strict=True):
        held, total = (m * s).sum(), s.sum()
        assert held >= mass * total
        assert held - s[m > 0].min() < mass * total  # without its weakest pixel it would not
        assert s[m > 0].min() >= s[m == 0].max()


def test_mask_is_taken_of_the_upsampled_map() -> None:
    saliency = torch.rand(2, 4, 4, generator=seeded(0))
    mask = important_mask(saliency, size=(32, 24), mass=0.5)
    assert mask.shape == (2, 32, 24)
    assert set(mask.unique().tolist()) == {0.0, 1.0}
    up = F.interpolate(saliency[:, None], size=(32, 24), mode="bilinear", align_corners=False)[:, 0]
    torch.testing.assert_close(mask, important_mask(up, size=(32, 24), mass=0.5))


def test_mask_of_an_empty_map_is_empty() -> None:
    assert important_mask(torch.zeros(1, 4, 4), size=(8, 8), mass=0.5).eq(0).all()
