from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor

from tests.training.toy import random_network
from training.attacks.pgd import pgd
from training.losses.sns import channel_change, neuron_sensitivity, select_sensitive, sns_penalty
from training.models.resnet import SmallResNet
from training.util.module_modes import seeded

EPS = 4 / 255


def activations(seed: int, n: int = 6) -> Tensor:
    return torch.randn(n, 5, 4, 3, generator=seeded(seed))


def test_hand_computed() -> None:
    clean = torch.zeros(2, 2, 1, 2)
    other = torch.tensor([[[[1.0, -3.0]], [[0.0, 0.5]]], [[[2.0, 2.0]], [[0.0, 0.0]]]])
    sensitivity = neuron_sensitivity({"a": clean}, {"a": other})["a"]
    # Opposite signs don't cancel: (|1| + |-3|) / 2 = 2 of image 0, 2 of image 1.
    torch.testing.assert_close(sensitivity, torch.tensor([2.0, 0.125]))


def test_equal_pairs_give_exactly_zero() -> None:
    a = {"a": activations(0)}
    for relative in (False, True):
        assert neuron_sensitivity(a, {"a": a["a"].clone()}, relative=relative)["a"].eq(0).all()
        assert sns_penalty(a, {"a": a["a"].clone()}, {"a": torch.tensor([0, 2])}, relative=relative) == 0


def test_fully_connected_neuron_is_the_mean_absolute_difference() -> None:
    a, b = torch.randn(7, 3), torch.randn(7, 3)
    torch.testing.assert_close(channel_change(a, b), (a - b).abs())
    torch.testing.assert_close(neuron_sensitivity({"fc": a}, {"fc": b})["fc"], (a - b).abs().mean(0))


@pytest.mark.parametrize("relative", [False, True])
def test_order_of_images_does_not_matter(relative: bool) -> None:
    a, b, order = activations(0), activations(1), torch.tensor([3, 0, 5, 1, 4, 2])
    plain = neuron_sensitivity({"a": a}, {"a": b}, relative=relative)["a"]
    torch.testing.assert_close(neuron_sensitivity({"a": a[order]}, {"a": b[order]}, relative=relative)["a"], plain)


def test_whole_set_is_the_mean_of_its_batches() -> None:
    a, b = activations(0), activations(1)
    parts = [neuron_sensitivity({"a": a[i : i + 2]}, {"a": b[i : i + 2]})["a"] for i in (0, 2, 4)]
    torch.testing.assert_close(torch.stack(parts).mean(0), neuron_sensitivity({"a": a}, {"a": b})["a"])


def test_scaling_a_channel_is_linear_in_ns_and_nothing_in_relative_ns() -> None:
    a, b = activations(0), activations(1)
    scale = torch.tensor([1.0, 2.0, 0.1, 10.0, 3.0])[:, None, None]
    absolute, relative = (neuron_sensitivity({"a": a}, {"a": b}, relative=r)["a"] for r in (False, True))
    scaled = {"a": a * scale}, {"a": b * scale}
    torch.testing.assert_close(neuron_sensitivity(*scaled)["a"], absolute * scale.flatten())
    torch.testing.assert_close(neuron_sensitivity(*scaled, relative=True)["a"], relative)


def test_permuting_channels_permutes_ns() -> None:
    a, b, order = activations(0), activations(1), torch.tensor([4, 2, 0, 1, 3])
    plain = neuron_sensitivity({"a": a}, {"a": b}, relative=True)["a"]
    permuted = neuron_sensitivity({"a": a[:, order]}, {"a": b[:, order]}, relative=True)["a"]
    torch.testing.assert_close(permuted, plain[order])


def test_dead_neurons_have_relative_sensitivity_one() -> None:
    a, b = torch.zeros(2, 2, 3, 3), torch.zeros(2, 2, 3, 3)
    b[:, 1] = 5
    assert neuron_sensitivity({"a": a}, {"a": b}, relative=True)["a"].tolist() == [1, 1]


def test_selection_takes_the_largest_and_the_lower_index_of_ties() -> None:
    value = torch.zeros(20)
    value[[3, 7, 11]] = 1.0
    value[15] = 2.0
    assert select_sensitive({"a": value})["a"].tolist() == [3, 15]
    assert select_sensitive({"a": torch.ones(20)})["a"].tolist() == [0, 1]
    assert select_sensitive({"a": torch.tensor([0.0, 5.0, 1.0])})["a"].tolist() == [1]  # at least one
    assert select_sensitive({"a": value}, share=1)["a"].tolist() == list(range(20))


def test_penalty_hand_computed() -> None:
    clean, other = torch.full((1, 2, 1, 1), 2.0), torch.tensor([5.0, 100.0]).view(1, 2, 1, 1)
    index = {"a": torch.tensor([0])}
    assert float(sns_penalty({"a": clean}, {"a": other}, index, relative=False)) == 3.0
    assert float(sns_penalty({"a": clean}, {"a": other}, index)) == 1.5


def test_penalty_ignores_other_neurons_and_averages_layers() -> None:
    clean, other = {"a": activations(0), "b": activations(1)}, {"a": activations(2), "b": activations(3)}
    index = {"a": torch.tensor([1, 3]), "b": torch.tensor([0])}
    penalty = sns_penalty(clean, other, index)
    edited = {"a": other["a"].clone(), "b": other["b"]}
    edited["a"][:, [0, 2, 4]] += 9
    assert sns_penalty(clean, edited, index) == penalty
    by_layer = [sns_penalty(clean, other, {name: index[name]}) for name in index]
    torch.testing.assert_close(penalty, torch.stack(by_layer).mean())


def test_shrinking_features_lowers_the_absolute_penalty_alone() -> None:
    """The trap: features times a and the next weights over a are the same function; the relative form must not pay."""
    a, b, index = activations(0), activations(1), {"a": torch.tensor([0, 4])}
    slopes = []
    for relative in (False, True):
        scale = torch.tensor(1.0, requires_grad=True)
        penalty = sns_penalty({"a": scale * a}, {"a": scale * b}, index, relative=relative)
        slopes.append(float(torch.autograd.grad(penalty, scale)[0] / penalty.detach()))
    assert slopes[0] == pytest.approx(1.0, rel=1e-5)
    assert slopes[1] == pytest.approx(0.0, abs=1e-5)


def test_penalty_trains_both_branches() -> None:
    a, b = activations(0).requires_grad_(), activations(1).requires_grad_()
    sns_penalty({"a": a}, {"a": b}, {"a": torch.tensor([1])}).backward()
    for gradient in (a.grad, b.grad):
        assert gradient is not None
        assert gradient[:, 1].ne(0).all()
        assert gradient[:, [0, 2, 3, 4]].eq(0).all()


def test_network_scaled_inside_keeps_its_relative_ns_and_penalty() -> None:
    """The stem's output times 3, the next weights over 3: NS of the stem is times 3, what is relative is equal."""
    network, scaled = random_network(0), random_network(0)
    with torch.no_grad():
        scaled.get_parameter("stem.1.weight").mul_(3)
        scaled.get_parameter("stem.1.bias").mul_(3)
        scaled.get_parameter("stages.0.0.conv1.weight").div_(3)
        x, other = torch.rand(4, 3, 16, 16), torch.rand(4, 3, 16, 16)
        absolute = [neuron_sensitivity(n.taps(x)[1], n.taps(other)[1])["stem"] for n in (network, scaled)]
        relative = [
            neuron_sensitivity(n.taps(x)[1], n.taps(other)[1], relative=True)["stem"] for n in (network, scaled)
        ]
        index = {"stem": torch.tensor([0, 2])}
        losses = [
            [float(sns_penalty(n.taps(x)[1], n.taps(other)[1], index, relative=r)) for n in (network, scaled)]
            for r in (False, True)
        ]
    torch.testing.assert_close(absolute[1], 3 * absolute[0])
    torch.testing.assert_close(relative[1], relative[0])
    assert losses[0][1] == pytest.approx(3 * losses[0][0], rel=1e-4)
    assert losses[1][1] == pytest.approx(losses[1][0], rel=1e-4)


# The paper's claims, on a small standard network and data that it learnt (`trained`).


def mean_ns(network: SmallResNet, x: Tensor, other: Tensor) -> dict[str, float]:
    with torch.no_grad():
        sensitivity = neuron_sensitivity(network.taps(x)[1], network.taps(other)[1], relative=True)
    return {name: float(value.mean()) for name, value in sensitivity.items()}


def test_ns_grows_with_eps(trained: SmallResNet, test_images: tuple[Tensor, Tensor]) -> None:
    x, y = test_images
    layers = [
        mean_ns(trained, x, pgd(trained, x, y, eps=eps / 255, steps=10, generator=seeded(0))) for eps in (2, 4, 8)
    ]
    for name in layers[0]:
        assert layers[0][name] < layers[1][name] < layers[2][name], name


def test_attack_moves_neurons_more_than_noise_of_its_norm(
    trained: SmallResNet, test_images: tuple[Tensor, Tensor]
) -> None:
    x, y = test_images
    adv = pgd(trained, x, y, eps=EPS, steps=10, generator=seeded(0))
    size = (adv - x).flatten(1).norm(dim=1)[:, None, None, None]
    noise = torch.randn(x.shape, generator=seeded(1))
    noisy = x + noise / noise.flatten(1).norm(dim=1)[:, None, None, None] * size
    attack, control = mean_ns(trained, x, adv), mean_ns(trained, x, noisy)
    assert attack["stage2"] > 1.2 * control["stage2"]
    assert attack["stage3"] > 1.2 * control["stage3"]


@contextmanager
def channels_off(network: SmallResNet, stage: int, channels: Tensor) -> Iterator[None]:
    def hook(module: object, inputs: object, output: Tensor) -> Tensor:
        return output.index_fill(1, channels, 0.0)

    handle = network.stages[stage].register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def test_sensitive_channels_carry_the_adversarial_prediction(
    trained: SmallResNet, test_images: tuple[Tensor, Tensor]
) -> None:
    """Claim (i): masking the k channels of largest NS changes more adversarial predictions than k random ones.

    Measured in the middle stage on images that were fooled; the last stage shows the same, less clearly.
    """
    x, y = test_images
    adv = pgd(trained, x, y, eps=EPS, steps=10, generator=seeded(0))
    with torch.no_grad():
        before = trained(adv).argmax(1)
        fooled = before != y
        assert fooled.sum() > 30
        sensitivity = neuron_sensitivity(trained.taps(x)[1], trained.taps(adv)[1])

        def changed(channels: Tensor) -> float:
            with channels_off(trained, 1, channels):
                return float((trained(adv).argmax(1) != before)[fooled].float().mean())

        top = select_sensitive(sensitivity, share=0.2)["stage2"]
        random = [changed(torch.randperm(8, generator=seeded(2, i))[: len(top)]) for i in range(40)]
        assert changed(top) > sum(random) / len(random) + 0.1
