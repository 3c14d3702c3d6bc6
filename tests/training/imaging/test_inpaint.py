from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from training.imaging.inpaint import inpaint
from training.util.module_modes import seeded

SIZES = pytest.mark.parametrize("size", [(32, 32), (33, 33), (20, 47), (224, 224), (1, 5)])


def square(size: tuple[int, int], n: int = 2) -> Tensor:
    mask = torch.zeros(n, *size)
    mask[:, size[0] // 4 : size[0] // 4 + max(1, size[0] // 3), size[1] // 2 : size[1] // 2 + max(1, size[1] // 3)] = 1
    return mask


@SIZES
def test_empty_mask_is_bit_identical(size: tuple[int, int]) -> None:
    x = torch.rand(2, 3, *size)
    assert torch.equal(inpaint(x, torch.zeros(2, *size)), x)


@SIZES
def test_outside_the_mask_is_bit_identical_and_inside_is_new(size: tuple[int, int]) -> None:
    x, mask = torch.rand(2, 3, *size), square(size)
    filled = inpaint(x, mask)
    hole = (mask[:, None] > 0.5).expand_as(x)
    assert torch.equal(filled[~hole], x[~hole])
    assert not torch.isclose(filled[hole], x[hole]).all()
    assert filled.min() >= 0
    assert filled.max() <= 1


@SIZES
@pytest.mark.parametrize("value", [0.0, 0.37, 1.0])
def test_constant_image_stays_constant(size: tuple[int, int], value: float) -> None:
    x = torch.full((2, 3, *size), value)
    torch.testing.assert_close(inpaint(x, square(size)), x, atol=1e-5, rtol=0)


@SIZES
def test_hidden_pixels_do_not_matter(size: tuple[int, int]) -> None:
    """What an attacker wrote under the mask leaves no trace."""
    x, mask = torch.rand(2, 3, *size), square(size)
    other = torch.where(mask[:, None] > 0.5, torch.rand(x.shape), x)
    assert torch.equal(inpaint(x, mask), inpaint(other, mask))


@SIZES
def test_idempotent_under_a_fixed_mask(size: tuple[int, int]) -> None:
    x, mask = torch.rand(2, 3, *size), square(size)
    once = inpaint(x, mask)
    torch.testing.assert_close(inpaint(once, mask), once, atol=1e-6, rtol=0)


def test_fill_follows_the_surroundings() -> None:
    """A ramp with a hole: the fill is nearer to the ramp than the mean of the image is."""
    ramp = torch.linspace(0, 1, 32).expand(1, 3, 32, 32).contiguous()
    mask = torch.zeros(1, 32, 32)
    mask[:, 10:18, 20:28] = 1
    hole = (mask[:, None] > 0.5).expand_as(ramp)
    error = (inpaint(ramp, mask) - ramp)[hole].abs().mean()
    assert error < 0.5 * (0.5 - ramp)[hole].abs().mean()
    assert error < 0.08


@pytest.mark.parametrize("size", [(32, 32), (33, 33), (224, 224)])
def test_one_known_pixel_fills_everything(size: tuple[int, int]) -> None:
    mask = torch.ones(1, *size)
    mask[0, size[0] - 1, 3] = 0
    x = torch.rand(1, 3, *size, generator=seeded(0))
    filled = inpaint(x, mask, smooth=0)
    torch.testing.assert_close(filled, x[:, :, -1:, 3:4].expand_as(x), atol=1e-4, rtol=0)


def test_everything_masked_has_no_nan() -> None:
    filled = inpaint(torch.rand(1, 3, 33, 33), torch.ones(1, 33, 33))
    assert filled.eq(0).all()


def test_images_of_a_batch_do_not_touch_each_other() -> None:
    x, mask = torch.rand(3, 3, 32, 32), torch.zeros(3, 32, 32)
    mask[1, 3:20, 5:9] = 1
    mask[2, 30:, :] = 1
    singles = torch.cat([inpaint(x[i : i + 1], mask[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(inpaint(x, mask), singles, atol=1e-6, rtol=0)


def test_gradient_flows_from_known_pixels_alone() -> None:
    x, mask = torch.rand(1, 3, 16, 16, requires_grad=True), square((16, 16), 1)
    hole = (mask[:, None] > 0.5).expand_as(x)
    inpaint(x, mask)[hole].sum().backward()
    assert x.grad is not None
    assert x.grad[hole].eq(0).all()
    assert x.grad[~hole].gt(0).any()


@pytest.mark.parametrize("size", [32, 64, 224, 384])
def test_the_fill_of_a_smooth_scene_is_near_it_at_any_size(size: int) -> None:
    """A hole of a tenth of the area is filled as well in a large image as in a small one."""
    scene = F.interpolate(torch.rand(4, 3, 3, 3, generator=seeded(0)), size=(size, size), mode="bilinear")
    mask, side = torch.zeros(4, size, size), round(0.32 * size)
    mask[:, size // 4 : size // 4 + side, size // 3 : size // 3 + side] = 1
    hole = (mask[:, None] > 0.5).expand_as(scene)
    assert (inpaint(scene, mask) - scene)[hole].abs().mean() < 0.12
