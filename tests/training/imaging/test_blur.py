from __future__ import annotations

import pytest
import torch

from training.imaging.blur import broad_blur, gaussian_blur


@pytest.mark.parametrize("size", [(32, 32), (64, 80)])
def test_small_images_are_blurred_as_they_are(size: tuple[int, int]) -> None:
    x = torch.rand(2, 3, *size)
    assert torch.equal(broad_blur(x, 1 / 8), gaussian_blur(x, min(size) / 8))


@pytest.mark.parametrize("size", [(224, 224), (150, 211)])
@pytest.mark.parametrize("share", [1 / 8, 1.5 / 32])
def test_large_ones_nearly(size: tuple[int, int], share: float) -> None:
    x = torch.rand(1, 3, *size)
    x[:, :, 40:90, 30:100] += 1.0
    difference = (broad_blur(x, share) - gaussian_blur(x, share * min(size))).abs()
    assert difference.mean() < 0.01
    assert difference[..., 30:-30, 30:-30].max() < 0.02  # at the border single pixels are replicated, or cells
