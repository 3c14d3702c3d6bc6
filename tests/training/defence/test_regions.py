from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from tests.training.toy import random_network, square
from training.defence.regions import (
    class_activation_map,
    colourfulness,
    contrasts,
    median_3x3,
    region_of_attack,
    region_of_importance,
    standardised,
    texture,
    window_sides,
)
from training.imaging.inpaint import inpaint
from training.util.module_modes import seeded


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
    found, score = region_of_attack(x)
    assert {float(area) ** 0.5 for area in found.sum((1, 2))} <= set(map(float, sides))
    overlap = (found * truth).sum((1, 2)) / torch.maximum(found, truth).sum((1, 2))
    assert overlap.mean() > 0.7
    assert overlap.min() > 0.4
    # Without the region nothing stands out as much.
    assert (region_of_attack(inpaint(x, found))[1] < 0.7 * score).all()


def test_a_window_of_a_wide_grey_image() -> None:
    x = torch.full((1, 1, 20, 32), 0.5)
    x[0, 0, 12:18, 3:9] = torch.rand(6, 6, generator=seeded(0)).round()
    found, _ = region_of_attack(x)
    assert found.shape == (1, 20, 32)
    assert found[0, 12:18, 3:9].mean() > 0.6


def test_class_activation_map_is_grad_cam() -> None:
    """With global average pooling and a linear head, weights are the logit's gradient by channel times h w."""
    network, x = random_network(0), torch.rand(2, 3, 16, 16)
    features = network.taps(x)[1]["stage3"].detach().requires_grad_()
    label = torch.tensor([1, 3])
    logits = network.head(features.mean((2, 3)))
    (gradient,) = torch.autograd.grad(logits.gather(1, label[:, None]).sum(), features)
    expected = F.relu((features * gradient.mean((2, 3), keepdim=True) * 16).sum(1, keepdim=True))
    one_hot = F.one_hot(label, 4).float()
    cam = class_activation_map(features, network.head.weight, one_hot, (4, 4))
    torch.testing.assert_close(cam, expected[:, 0], atol=1e-5, rtol=1e-4)
    assert class_activation_map(features, network.head.weight, one_hot, (16, 16)).shape == (2, 16, 16)


def test_region_of_importance_is_the_level_set_and_empty_on_a_zero_map() -> None:
    cam = torch.zeros(2, 3, 3)
    cam[0] = torch.tensor([[0.0, 1.0, 2.0], [3.9, 4.0, 4.1], [10.0, 5.0, 0.0]])
    roi = region_of_importance(cam)
    assert roi[0].tolist() == [[0, 0, 0], [0, 1, 1], [1, 1, 0]]
    assert roi[1].eq(0).all()
    assert torch.equal(region_of_importance(1000 * cam), roi)
