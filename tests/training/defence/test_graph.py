from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.training.toy import CLASSES, SIDE, random_network
from training.attacks.margin import margin
from training.data.dataset import Dataset
from training.defence.constants import fit_constants, sensitive_neurons
from training.defence.graph import DefenceGraph, DefenceOutputs, companion_map
from training.defence.localisers.windows import window_sides
from training.defence.regions import gradient_activation_map, region_of_importance
from training.defence.saliency import saliency_map
from training.defence.scores import default_scores, screening
from training.defence.signals.deviation import top_mean, view_change
from training.defence.signals.margins import served_one_hot
from training.defence.signals.views import reference_views, shift
from training.errors import TrainingError
from training.imaging.inpaint import inpaint
from training.imaging.pixels import to_tensor
from training.models.network import Network

SCORES, ALONE_SCORES = default_scores(companion=True), default_scores(companion=False)


@pytest.fixture(scope="module")
def x(toy: Dataset) -> Tensor:
    return to_tensor(toy.test.x[:6])


@pytest.fixture(scope="module")
def mask() -> Tensor:
    made = torch.zeros(6, SIDE, SIDE)
    made[1, 2:6, 3:7] = 1
    made[4, 10:, :5] = 1
    return made


@pytest.fixture(scope="module")
def out(defence: DefenceGraph, x: Tensor) -> DefenceOutputs:
    return defence(x, torch.zeros(6, SIDE, SIDE))


def test_shapes(out: DefenceOutputs) -> None:
    maps, channels = (6, SIDE, SIDE), 4  # stem and three stages
    assert {name: tuple(value.shape) for name, value in out._asdict().items()} == {
        "logits": (6, CLASSES),
        "companion_logits": (6, CLASSES),
        "saliency": maps,
        "roi": maps,
        "roa": maps,
        "roa_score": (6,),
        "neutral_pixels": (6, 3, SIDE, SIDE),
        "layer_deviation": (6, channels),
        "scores": (6, len(SCORES)),
        "screen_scores": (6, len(screening())),
    }
    assert all(value.isfinite().all() and not value.requires_grad for value in out)


def test_logits_are_the_networks_own(defence: DefenceGraph, out: DefenceOutputs, x: Tensor) -> None:
    torch.testing.assert_close(out.logits, defence.network(x))
    torch.testing.assert_close(out.companion_logits, defence.companion(x))


def test_saliency_is_of_the_served_margin(defence: DefenceGraph, out: DefenceOutputs, x: Tensor) -> None:
    leaf = x.clone().requires_grad_()
    logits = defence.network(leaf)
    margin(logits, logits.argmax(1)).sum().backward()
    torch.testing.assert_close(out.saliency, saliency_map(x, leaf.grad), atol=1e-5, rtol=1e-4)


def test_scores_in_closed_form(defence: DefenceGraph, out: DefenceOutputs, x: Tensor) -> None:
    network, label = defence.network, out.logits.argmax(1)
    views = [margin(network(shift(x, d, d)), label) for d in (1, -1)]
    drop = margin(out.logits, label) - (views[0] + views[1]) / 2
    doubt = -margin(out.companion_logits, label)
    taps, view_taps = network.taps(x)[1], network.taps(reference_views(x))[1]
    start, deviation = 0, []
    for name in taps:
        stop = start + taps[name].shape[1]
        change = view_change(taps[name], view_taps[name])
        deviation.append(top_mean((change - defence.change_mean[start:stop]) / defence.change_std[start:stop]))
        start = stop
    torch.testing.assert_close(out.layer_deviation, torch.stack(deviation, 1), atol=1e-3, rtol=1e-4)
    by_name = dict(zip(SCORES, out.scores.unbind(1), strict=True))
    torch.testing.assert_close(by_name["margin_drop"], drop, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(by_name["companion_margin"], doubt, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(by_name["neuron_sensitivity"], out.layer_deviation[:, -1])


def test_distance_is_mahalanobis(defence: DefenceGraph, out: DefenceOutputs, toy: Dataset, x: Tensor) -> None:
    network = defence.network

    def features(pixels: Tensor) -> Tensor:
        return network.taps(pixels)[1]["stage3"].mean((2, 3)).double()

    train, select = features(to_tensor(toy.train.x)), features(to_tensor(toy.select.x))
    means = torch.stack([train[torch.from_numpy(toy.train.y) == k].mean(0) for k in range(CLASSES)])
    centred = select - means[torch.from_numpy(toy.select.y)]
    covariance = centred.T @ centred / len(centred)
    covariance = 0.9 * covariance + 0.1 * covariance.diagonal().mean() * torch.eye(len(covariance))
    gap = features(x) - means[out.logits.argmax(1)]
    expected = (gap @ torch.linalg.inv(covariance) * gap).sum(1)
    torch.testing.assert_close(out.scores[:, 2].double(), expected, atol=1e-2, rtol=1e-2)


def test_masked_call_is_the_plain_call_on_inpainted_pixels(defence: DefenceGraph, x: Tensor, mask: Tensor) -> None:
    masked, filled = defence(x, mask), inpaint(x, mask)
    plain = defence(filled, torch.zeros_like(mask))
    assert torch.equal(masked.neutral_pixels, filled)
    for name, a, b in zip(DefenceOutputs._fields, masked, plain, strict=True):
        torch.testing.assert_close(a, b, msg=name)
    assert not torch.allclose(masked.logits[1], defence(x, torch.zeros_like(mask)).logits[1])


def test_empty_mask_is_the_input_bit_for_bit(out: DefenceOutputs, x: Tensor) -> None:
    assert torch.equal(out.neutral_pixels, x)


def test_batch_equals_singles(defence: DefenceGraph, x: Tensor, mask: Tensor) -> None:
    batch = defence(x, mask)
    singles = [defence(x[i : i + 1], mask[i : i + 1]) for i in range(6)]
    for i, name in enumerate(DefenceOutputs._fields):
        together = torch.cat([single[i] for single in singles])
        torch.testing.assert_close(batch[i], together, atol=1e-3, rtol=1e-4, msg=name)


def test_maps_are_in_range(out: DefenceOutputs) -> None:
    assert out.saliency.min() >= 0
    assert out.saliency.max() <= 1
    for region in (out.roi, out.roa):
        assert set(region.unique().tolist()) <= {0.0, 1.0}
    assert {int(area) for area in out.roa.sum((1, 2))} <= {9, 16, 25}  # sides from 16 to 34 % of 16


def test_scores_have_a_gradient_for_adaptive_attacks(defence: DefenceGraph, x: Tensor) -> None:
    leaf = x.clone().requires_grad_()
    logits, taps = defence.network.taps(leaf)
    scores, _ = defence.detector_scores(leaf, logits, taps, defence.companion(leaf))
    for column in range(len(SCORES)):
        (gradient,) = torch.autograd.grad(scores[:, column].sum(), leaf, retain_graph=True)
        assert gradient.flatten(1).norm(dim=1).min() > 0, SCORES[column]


def test_graph_works_without_gradients_enabled(defence: DefenceGraph, out: DefenceOutputs, x: Tensor) -> None:
    with torch.no_grad():
        again = defence(x, torch.zeros(6, SIDE, SIDE))
    torch.testing.assert_close(again.saliency, out.saliency)


def test_other_sizes(toy: Dataset) -> None:
    network, companion = random_network(0), random_network(1)
    graph = DefenceGraph(network, companion, fit_constants(network, toy.train, toy.select, classes=CLASSES))
    out = graph(torch.rand(1, 3, 33, 48), torch.zeros(1, 33, 48))
    assert out.saliency.shape == out.roi.shape == out.roa.shape == (1, 33, 48)
    assert int(out.roa.sum()) in {side**2 for side in window_sides(33, 48)}


def test_sensitive_neurons_by_layer(toy: Dataset) -> None:
    network, x = random_network(0), to_tensor(toy.test.x[:8])
    chosen = sensitive_neurons(network, x, (x + 0.1).clamp(0, 1), share=0.25)
    assert {name: len(index) for name, index in chosen.items()} == {"stem": 1, "stage1": 1, "stage2": 2, "stage3": 4}
    assert all(index == sorted(index) for index in chosen.values())


class AnyHead(Network):
    """A network that does not say what its head is."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.inner = network

    @property
    def tap_channels(self) -> dict[str, int]:
        return self.inner.tap_channels

    def taps(self, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        return self.inner.taps(x)


def test_the_companions_map_is_the_same_by_its_gradient(defence: DefenceGraph, x: Tensor) -> None:
    label = served_one_hot(defence.network(x))
    logits, cam = companion_map(defence.companion, x, label)
    other_logits, other = companion_map(AnyHead(defence.companion), x, label)
    torch.testing.assert_close(other_logits, logits)
    torch.testing.assert_close(other, cam, atol=1e-5, rtol=1e-4)
    assert not other.requires_grad


def test_without_a_companion(defence: DefenceGraph, out: DefenceOutputs, x: Tensor, mask: Tensor) -> None:
    alone = DefenceGraph(defence.network, None, defence.constants)
    found = alone(x, torch.zeros(6, SIDE, SIDE))
    assert found.companion_logits is None
    assert found.screen_scores is None
    assert torch.equal(found.scores, out.scores[:, : len(ALONE_SCORES)])
    for name in ("logits", "saliency", "roa", "roa_score", "layer_deviation"):
        assert torch.equal(getattr(found, name), getattr(out, name)), name
    leaf = x.clone().requires_grad_()
    logits, taps = defence.network.taps(leaf)
    served = margin(logits, logits.argmax(1)).sum()
    (gradient,) = torch.autograd.grad(served, taps["stage3"])
    cam = gradient_activation_map(taps["stage3"].detach(), gradient, (SIDE, SIDE))
    assert torch.equal(found.roi, region_of_importance(cam))
    assert all(value is None or value.isfinite().all() for value in alone(x, mask))


def test_features_that_are_all_the_same_are_told(toy: Dataset) -> None:
    network = random_network(0)
    for parameter in network.parameters():
        parameter.data.zero_()
    with pytest.raises(TrainingError, match="the same for every image"):
        fit_constants(network, toy.train.take(np.arange(8)), toy.select.take(np.arange(8)), classes=CLASSES)
