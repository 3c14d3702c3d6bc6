from __future__ import annotations

import pytest
import torch

from training.defence.saliency import saliency_map


@pytest.mark.parametrize("size", [(16, 16), (33, 32), (224, 224)])
def test_range_and_peak(size: tuple[int, int]) -> None:
    saliency = saliency_map(torch.rand(3, 3, *size), torch.randn(3, 3, *size))
    assert saliency.shape == (3, *size)
    assert saliency.min() >= 0
    assert saliency.amax((1, 2)).tolist() == [1, 1, 1]


def test_zero_gradient_and_constant_image_give_zeros_and_no_nan() -> None:
    assert saliency_map(torch.rand(2, 3, 16, 16), torch.zeros(2, 3, 16, 16)).eq(0).all()
    constant = saliency_map(torch.full((2, 3, 16, 16), 0.25), torch.zeros(2, 3, 16, 16))
    assert constant.eq(0).all()


def test_it_points_at_the_detail_that_speaks_for_the_label() -> None:
    pixels, gradient = torch.full((2, 1, 32, 32), 0.5), torch.ones(2, 1, 32, 32)
    pixels[0, 0, 20, 9] = 1.0  # brighter than its blur, and brightness raises the margin
    pixels[1, 0, 5, 25] = 0.0  # darker than its blur, and darkness raises the margin
    gradient[1] *= -1
    saliency = saliency_map(pixels, gradient)
    assert saliency.flatten(1).argmax(1).tolist() == [20 * 32 + 9, 5 * 32 + 25]


def test_detail_against_the_label_is_left_out() -> None:
    pixels, gradient = torch.full((1, 1, 32, 32), 0.5), torch.zeros(1, 1, 32, 32)
    pixels[0, 0, 20, 9] = 1.0
    gradient[0, 0, 20, 9] = -1.0
    assert saliency_map(pixels, gradient).eq(0).all()


def test_size_of_the_gradient_does_not_matter() -> None:
    pixels, gradient = torch.rand(2, 3, 16, 16), torch.randn(2, 3, 16, 16)
    torch.testing.assert_close(saliency_map(pixels, 1000 * gradient), saliency_map(pixels, gradient))


def test_images_do_not_touch_each_other() -> None:
    pixels, gradient = torch.rand(3, 3, 16, 16), torch.randn(3, 3, 16, 16)
    gradient[2] *= 100
    torch.testing.assert_close(saliency_map(pixels, gradient)[:1], saliency_map(pixels[:1], gradient[:1]))
