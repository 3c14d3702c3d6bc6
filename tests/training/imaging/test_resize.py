from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from training.imaging.resize import box_mean, double_nearest, resize_bilinear


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
