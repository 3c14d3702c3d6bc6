from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.analysis.cam import (
    METHODS,
    grad_cam,
    grad_cam_plus_plus,
    heat_maps,
    layer_cam,
    noise_cam,
    normalised,
)
from training.models import ModelSpec, build_model


class LinearConv(nn.Module):
    """Two 1x1 convolutions without activations and a head on spatial means: every map is a sum that a hand can do."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 2, 1, bias=False)
        self.second = nn.Conv2d(2, 2, 1, bias=False)
        self.head = nn.Linear(2, 2, bias=False)
        with torch.no_grad():
            self.first.weight.copy_(torch.tensor([1.0, 3.0]).view(2, 1, 1, 1))
            self.second.weight.copy_(torch.tensor([[1.0, 0.0], [1.0, 1.0]]).view(2, 2, 1, 1))
            self.head.weight.copy_(torch.tensor([[1.0, -1.0], [2.0, 0.5]]))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.second(self.first(x)).mean((2, 3)))


X = torch.tensor([[[[0.1, 0.2], [0.0, 0.5]]]])


def test_maps_of_a_linear_network_by_hand() -> None:
    """logit_1 = 2 a + 0.5 b of the means of channels a = x, b = x + 3 x; g is constant, a fourth of those weights."""
    logits, maps, responses = heat_maps(LinearConv(), X, torch.tensor([1]))
    mean = X.mean()
    assert torch.allclose(logits, torch.stack([mean - 4 * mean, 2 * mean + 2 * mean])[None])
    assert torch.allclose(responses["second"], torch.cat([X, 4 * X], 1))
    by_hand = (2.0 * X + 0.5 * 4 * X)[:, 0] / 4
    for method in ("grad_cam", "grad_cam_plus_plus", "layer_cam"):
        assert torch.allclose(maps["second"][method], by_hand), method
    # d logit_1 / d first = (2 + 0.5, 0.5) / 4
    assert torch.allclose(maps["first"]["grad_cam"], (2.5 * X + 0.5 * 3 * X)[:, 0] / 4)
    assert not maps["second"]["noise_cam"].any()


def test_what_speaks_against_a_label_is_cut_off() -> None:
    _, maps, _ = heat_maps(LinearConv(), X, torch.tensor([0]))
    assert not maps["second"]["grad_cam"].any()  # a - b = x - 4 x
    assert torch.allclose(maps["second"]["layer_cam"], X[:, 0] / 4)  # only a's weight is positive


def test_formulas_term_by_term() -> None:
    generator = torch.Generator().manual_seed(1)
    a, g = torch.rand(2, 3, 4, 4, generator=generator), torch.randn(2, 3, 4, 4, generator=generator)
    factor = torch.tensor([1.5, 2.5])
    for n in range(2):
        grad, layer, plus, difference = (torch.zeros(4, 4) for _ in range(4))
        for k in range(3):
            alpha = torch.where(g[n, k] > 0, g[n, k] ** 2 / (2 * g[n, k] ** 2 + g[n, k] ** 3 * a[n, k].sum()), 0.0)
            weight = (alpha / alpha.sum() * F.relu(g[n, k])).sum()
            grad += g[n, k].mean() * a[n, k]
            layer += F.relu(g[n, k]) * a[n, k]
            plus += weight * a[n, k]
            difference += a[n, k] * (factor[n] * weight - F.relu(g[n, k]))
        assert torch.allclose(grad_cam(a, g)[n], F.relu(grad), atol=1e-6)
        assert torch.allclose(layer_cam(a, g)[n], F.relu(layer), atol=1e-6)
        assert torch.allclose(grad_cam_plus_plus(a, g)[n], F.relu(plus), atol=1e-6)
        assert torch.allclose(noise_cam(a, g, factor)[n], F.relu(difference), atol=1e-5)
    both = grad_cam_plus_plus(a, g) - layer_cam(a, g)
    assert torch.allclose(noise_cam(a, g), F.relu(both), atol=1e-6)


def test_no_gradient_no_map() -> None:
    a, g = torch.rand(1, 2, 3, 3), torch.zeros(1, 2, 3, 3)
    for cam in METHODS.values():
        assert not cam(a, g).any()
    assert not normalised(torch.ones(1, 3, 3)).any()
    assert torch.equal(normalised(torch.tensor([[[2.0, 4.0, 3.0]]])), torch.tensor([[[0.0, 1.0, 0.5]]]))


def test_at_the_last_convolution_grad_cam_is_the_class_activation_map() -> None:
    """Zhou et al. 2016: head weights over the area, where the head is linear in spatial means."""
    network = build_model(ModelSpec(width=4), classes=3, mean=[0.5] * 3, std=[0.2] * 3).eval()
    x, label = torch.rand(2, 3, 16, 16), torch.tensor([2, 0])
    _, maps, responses = heat_maps(network, x, label)
    last = responses["stage3"]
    head = network.pooled_head
    assert head is not None
    weight = head[label][:, :, None, None]
    assert torch.allclose(maps["stage3"]["grad_cam"], F.relu((weight * last).sum(1)) / last[0, 0].numel(), atol=1e-5)


def test_a_probability_brings_noise_cams_published_factor() -> None:
    network, x = LinearConv(), X
    _, shared, _ = heat_maps(network, x, torch.tensor([1]))
    _, published, _ = heat_maps(network, x, torch.tensor([1]), score="probability")
    assert not shared["second"]["noise_cam"].any()
    assert published["second"]["noise_cam"].max() > 0


@pytest.mark.reference
def test_grad_cam_against_captum() -> None:
    attr = pytest.importorskip("captum.attr")
    network = build_model(ModelSpec(width=4), classes=3, mean=[0.5] * 3, std=[0.2] * 3).eval()
    x, label = torch.rand(2, 3, 16, 16), torch.tensor([1, 2])
    _, maps, _ = heat_maps(network, x, label)
    for name, layer in {"stem": "stem", "stage1": "stages.0", "stage3": "stages.2"}.items():
        theirs = attr.LayerGradCam(network, network.get_submodule(layer))
        found = theirs.attribute(x, label, relu_attributions=True)[:, 0]
        assert torch.allclose(maps[name]["grad_cam"], found, atol=1e-6), name
