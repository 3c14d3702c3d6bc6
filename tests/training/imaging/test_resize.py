from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from training.imaging.resize import area_average, box_mean, double_nearest, resize_bilinear, smoothed, working_size


@pytest.mark.parametrize("size", [(8, 8), (32, 32), (33, 20), (5, 3), (4, 4), (1, 1), (224, 224)])
@pytest.mark.parametrize("source", [(4, 4), (8, 5), (1, 1), (33, 7)])
def test_bilinear_is_torch_interpolate(source: tuple[int, int], size: tuple[int, int]) -> None:
    x = torch.randn(2, 3, *source)
    expected = F.interpolate(x, size=size, mode="bilinear", align_corners=False)
    torch.testing.assert_close(resize_bilinear(x, size), expected, atol=1e-5, rtol=1e-5)


def test_bilinear_in_double_precision_and_same_size() -> None:
    x = torch.randn(1, 2, 6, 7, dtype=torch.float64)
    assert resize_bilinear(x, (6, 7)).dtype == torch.float64
    torch.testing.assert_close(resize_bilinear(x, (6, 7)), x)


@pytest.mark.parametrize("shape", [(1, 1), (3, 5), (16, 16)])
def test_doubling_is_torch_nearest(shape: tuple[int, int]) -> None:
    x = torch.randn(2, 3, *shape)
    assert torch.equal(double_nearest(x), F.interpolate(x, scale_factor=2, mode="nearest"))


@pytest.mark.parametrize("side", [1, 3, 7])
def test_box_mean_is_average_pooling(side: int) -> None:
    x = torch.randn(2, 3, 9, 7)
    torch.testing.assert_close(box_mean(x, side), F.avg_pool2d(x, side, stride=1), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(("source", "size"), [((64, 64), (32, 32)), ((224, 96), (56, 32))])
def test_areas_that_divide_are_average_pooling(source: tuple[int, int], size: tuple[int, int]) -> None:
    x = torch.rand(2, 3, *source)
    expected = F.interpolate(x, size=size, mode="area")
    torch.testing.assert_close(area_average(x, size), expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(("source", "size"), [((224, 224), (48, 48)), ((50, 33), (32, 32)), ((33, 100), (32, 48))])
def test_an_average_keeps_the_mean_and_the_ball(source: tuple[int, int], size: tuple[int, int]) -> None:
    """Every pixel counts as much as any other, and a change of at most eps stays one."""
    x, eps = torch.rand(2, 3, *source), 8 / 255
    torch.testing.assert_close(area_average(x, size).mean((2, 3)), x.mean((2, 3)), atol=1e-5, rtol=1e-4)
    change = eps * torch.randn(x.shape).sign()
    moved = area_average(x + change, size) - area_average(x, size)
    assert moved.abs().max() <= eps + 1e-6
    torch.testing.assert_close(area_average(torch.ones(1, 1, *source), size), torch.ones(1, 1, *size))


def test_its_own_size_is_the_image_itself() -> None:
    x = torch.rand(1, 3, 20, 30)
    assert area_average(x, (20, 30)) is x


@pytest.mark.parametrize(
    ("size", "cells"),
    [
        ((32, 32), (32, 32)),
        ((95, 200), (95, 200)),
        ((96, 96), (48, 48)),
        ((224, 224), (56, 56)),
        ((384, 384), (48, 48)),
        ((256, 256), (64, 64)),
        ((299, 299), (50, 50)),
    ],
)
def test_working_sizes(size: tuple[int, int], cells: tuple[int, int]) -> None:
    assert working_size(*size) == cells


def test_smoothed_is_average_pooling_of_replicated_borders() -> None:
    x = torch.rand(2, 3, 9, 14)
    expected = F.avg_pool2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    torch.testing.assert_close(smoothed(x), expected, atol=1e-6, rtol=1e-5)
