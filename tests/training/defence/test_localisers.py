from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from tests.training.toy import square
from training.attacks.patch import Kind, random_patches
from training.defence.localisers import LOCALISER, LOCALISERS
from training.defence.localisers.texture_colour import colourfulness, median_3x3, texture
from training.defence.localisers.windows import contrasts, standardised, window_sides
from training.imaging.inpaint import inpaint
from training.imaging.resize import working_size
from training.util.module_modes import seeded

locate = LOCALISERS[LOCALISER].locate


def test_window_sides() -> None:
    assert window_sides(32, 32) == [5, 7, 9, 11]
    assert window_sides(224, 224) == [36, 49, 63, 76]
    assert window_sides(32, 100) == [5, 7, 9, 11]
    assert window_sides(8, 8) == [3]


def test_median_of_nine() -> None:
    x = torch.rand(2, 3, 9, 7)
    x[0, 0, :, 3] = x[0, 0, :, 4]  # ties
    near = F.unfold(F.pad(x, (1, 1, 1, 1), mode="replicate"), 3).reshape(2, 3, 9, 9, 7)
    assert torch.equal(median_3x3(x), near.median(2).values)


def test_texture_sees_specks_but_no_edges() -> None:
    x = torch.zeros(1, 3, 12, 12)
    x[..., 6:] = 0.7  # a straight edge
    assert texture(x).eq(0).all()
    x[0, :, 4, 2] = 1.0
    assert texture(x).nonzero().tolist() == [[0, 4, 2]]
    assert texture(x)[0, 4, 2] == 3.0


def test_colourfulness() -> None:
    assert colourfulness(torch.rand(2, 1, 4, 4)).eq(0).all()
    x = torch.tensor([0.2, 0.9, 0.5])[None, :, None, None].expand(1, 3, 2, 2)
    torch.testing.assert_close(colourfulness(x), torch.full((1, 2, 2), 0.7))


def test_contrast_is_the_two_sample_statistic() -> None:
    values = torch.rand(2, 9, 11, dtype=torch.float64)
    inside = square(11, 3, 5, 4)[:9].bool()
    means = values[1][inside].mean() - values[1][~inside].mean()
    expected = means / values[1].std(correction=0) / (1 / 16 + 1 / (99 - 16)) ** 0.5
    torch.testing.assert_close(contrasts(values, [4])[4][1, 3, 5], expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(contrasts(7 * values - 3, [4]), contrasts(values, [4]), rtol=1e-4, atol=1e-4)


def test_standardised_maps_and_constant_ones() -> None:
    z = standardised(torch.rand(3, 8, 9) * 5 + 2)
    torch.testing.assert_close(z.mean((1, 2)), torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(z.std((1, 2), correction=0), torch.ones(3), atol=1e-3, rtol=0)
    assert standardised(torch.full((1, 4, 4), 3.0)).abs().max() < 1e-3


@pytest.mark.parametrize("size", [32, 33, 224])
def test_planted_patches_of_several_sides_are_found(size: int) -> None:
    """Noise on smooth images, in corners too."""
    n, sides = 8, window_sides(size, size)
    coarse = torch.rand(n, 3, 4, 4, generator=seeded(0))
    x = F.interpolate(coarse, size=(size, size), mode="bilinear", align_corners=False)
    corners = [(0, 0, sides[2]), (size - sides[1], size - sides[1], sides[1])]
    corners += [(3 * i, size // 2 - i, sides[i % len(sides)]) for i in range(n - 2)]
    truth = torch.stack([square(size, *corner) for corner in corners])
    x = torch.where(truth[:, None] > 0, torch.rand(x.shape, generator=seeded(2)), x)
    found, score = locate(x)
    cells = working_size(size, size)[0]
    assert found.amax(1).sum(1).amax() <= (window_sides(cells, cells)[-1] + 2) * size / cells
    overlap = (found * truth).sum((1, 2)) / torch.maximum(found, truth).sum((1, 2))
    assert overlap.mean() > (0.7 if cells == size else 0.5)  # windows of cells reach beyond a patch
    assert overlap.min() > (0.4 if cells == size else 0.25)
    # Without the region nothing stands out as much.
    assert (locate(inpaint(x, found))[1] < 0.7 * score).all()


def test_a_window_of_a_wide_grey_image() -> None:
    x = torch.full((1, 1, 20, 32), 0.5)
    x[0, 0, 12:18, 3:9] = torch.rand(6, 6, generator=seeded(0)).round()
    found, _ = locate(x)
    assert found.shape == (1, 20, 32)
    assert found[0, 12:18, 3:9].mean() > 0.6


@pytest.mark.parametrize("size", [32, 64, 224, 384])
@pytest.mark.parametrize("share", [0.02, 0.05])
@pytest.mark.parametrize("kind", ["noisy", "low_frequency"])
def test_patches_of_a_share_of_the_image_are_found_at_any_size(size: int, share: float, kind: Kind) -> None:
    """On smooth images with the fine grain of a camera; of noise nothing may be left over."""
    n, generator = 6, seeded(0)
    x = F.interpolate(0.5 * torch.rand(n, 3, 3, 3, generator=generator), size=(size, size), mode="bicubic")
    x = (x + 0.2 + 0.02 * torch.randn(n, 3, size, size, generator=generator)).clamp(0, 1)
    patches = random_patches(x, round(share**0.5 * size), kind, generator)
    truth, (found, _) = patches.mask(x), locate(patches.on(x))
    covered = (found * truth).sum((1, 2)) / truth.sum((1, 2))
    assert covered.min() > (0.9 if kind == "noisy" else 0.3)
    assert found.mean() < 0.15


@pytest.mark.parametrize("size", [(96, 96), (100, 151), (224, 224)])
def test_the_soft_window_of_a_large_image_follows_the_hard_one(size: tuple[int, int]) -> None:
    x = F.interpolate(torch.rand(2, 3, 3, 3, generator=seeded(3)), size=size, mode="bilinear")
    patches = random_patches(x, 30, "noisy", seeded(4))
    mask, soft = locate(patches.on(x))[0], LOCALISERS[LOCALISER].soft(patches.on(x))
    assert soft.shape == mask.shape == (2, *size)
    assert ((soft * mask).sum((1, 2)) > 0.5 * soft.sum((1, 2))).all()
