from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.training.toy import random_network
from training.defence.inpaint import inpaint
from training.defence.regions import (
    attack_maps,
    best_window,
    class_activation_map,
    region_of_importance,
    standardised,
    window_mask,
    window_side,
)
from training.modes import seeded


def region(x: Tensor, features: Tensor) -> Tensor:
    side = window_side(x.shape[2], x.shape[3])
    energy, norm = attack_maps(x, features, side)
    return window_mask(best_window(energy, norm), (energy.shape[1], energy.shape[2]), side)


def test_window_side() -> None:
    assert [window_side(32, 32), window_side(224, 224), window_side(32, 100), window_side(8, 8)] == [9, 63, 9, 3]


@pytest.mark.parametrize("corner", [(0, 0), (0, 23), (23, 0), (23, 23), (11, 4)])
def test_window_is_a_square_of_the_right_side_at_its_corner(corner: tuple[int, int]) -> None:
    one_hot = torch.zeros(1, 24, 24)
    one_hot[0, corner[0], corner[1]] = 1
    expected = torch.zeros(1, 32, 32)
    expected[0, corner[0] : corner[0] + 9, corner[1] : corner[1] + 9] = 1
    assert torch.equal(window_mask(one_hot.flatten(1), (24, 24), 9), expected)


def test_window_of_a_wide_image() -> None:
    one_hot = torch.zeros(1, 6, 20)
    one_hot[0, 5, 19] = 1
    mask = window_mask(one_hot.flatten(1), (6, 20), 3)
    assert mask.shape == (1, 8, 22)
    assert mask.sum() == 9
    assert mask[0, 5:, 19:].all()


def test_attack_maps_are_means_over_windows() -> None:
    pixels, features = torch.rand(2, 3, 12, 10), torch.randn(2, 5, 12, 10)
    energy, norm = attack_maps(pixels, features, 4)
    assert energy.shape == norm.shape == (2, 9, 7)
    padded = F.pad(pixels, (1, 1, 1, 1), mode="replicate")
    blurred = sum(padded[:, :, i : i + 12, j : j + 10] for i in range(3) for j in range(3)) / 9
    high = (pixels - blurred).pow(2).sum(1)
    torch.testing.assert_close(energy[1, 5, 2], high[1, 5:9, 2:6].mean())
    torch.testing.assert_close(norm[0, 8, 6], features.norm(dim=1)[0, 8:, 6:].mean())


def test_standardised_maps_and_constant_ones() -> None:
    z = standardised(torch.rand(3, 8, 9) * 5 + 2)
    torch.testing.assert_close(z.mean((1, 2)), torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(z.std((1, 2), correction=0), torch.ones(3), atol=1e-3, rtol=0)
    assert standardised(torch.full((1, 4, 4), 3.0)).abs().max() < 1e-3


def test_best_window_is_where_both_maps_are_large() -> None:
    energy, norm = torch.zeros(2, 5, 6), torch.zeros(2, 5, 6)
    energy[0, 3, 4] = norm[0, 3, 4] = 1
    energy[1, 0, 0], energy[1, 2, 2], norm[1, 2, 2], norm[1, 4, 5] = 1, 0.9, 0.9, 1
    chosen = best_window(energy, norm)
    assert chosen.sum(1).tolist() == [1, 1]
    assert chosen.argmax(1).tolist() == [3 * 6 + 4, 2 * 6 + 2]


@pytest.mark.parametrize("size", [32, 33, 224])
def test_planted_patch_is_found(size: int) -> None:
    """Noise of the window's side on smooth images, features of a random network: mean IoU above 0.7."""
    n, side = 8, window_side(size, size)
    coarse = torch.rand(n, 3, 4, 4, generator=seeded(0))
    x = F.interpolate(coarse, size=(size, size), mode="bilinear", align_corners=False)
    truth = torch.zeros(n, size, size)
    corners = torch.randint(0, size - side + 1, (n, 2), generator=seeded(1))
    corners[0], corners[1] = torch.tensor([0, 0]), torch.tensor([size - side, size - side])
    for m, (top, left) in zip(truth, corners.tolist(), strict=True):
        m[top : top + side, left : left + side] = 1
    x = torch.where(truth[:, None] > 0, torch.rand(x.shape, generator=seeded(2)), x)
    with torch.no_grad():
        features = random_network(0).taps(x)[1]["stage1"]
    found = region(x, features)
    assert (found.sum((1, 2)) == side**2).all()
    overlap = (found * truth).sum((1, 2)) / torch.maximum(found, truth).sum((1, 2))
    assert overlap.mean() > 0.7
    assert overlap.min() > 0.4
    # Inpainting the region removes most of the patch's high-pass energy.
    before, after = (attack_maps(z, features, side)[0].amax((1, 2)) for z in (x, inpaint(x, found)))
    assert (after < 0.5 * before).all()


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
