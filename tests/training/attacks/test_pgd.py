from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.training.toy import Linear, random_network
from training.attacks.margin import margin
from training.attacks.pgd import direction, noisy_fgsm, pgd, project, training_pgd
from training.models.resnet import SmallResNet
from training.util.module_modes import seeded

NORMS = ("linf", "l2")
ROUNDING = 1e-6
NETWORK = random_network(0)  # hypothesis tests take no fixtures


@pytest.fixture
def linear() -> Linear:
    return Linear(torch.randn(2, 48, generator=seeded(7)))


def distance(adv: Tensor, x: Tensor, norm: str) -> Tensor:
    delta = (adv - x).flatten(1)
    return delta.abs().amax(1) if norm == "linf" else delta.norm(dim=1)


@pytest.mark.parametrize("loss", ["margin", "ce"])
def test_linear_model_linf_reaches_the_sign_solution(linear: Linear, loss) -> None:
    """The margin of class y falls fastest along -sign(W_y - W_other); the corner is x - eps sign(.)."""
    x, y = torch.full((3, 3, 4, 4), 0.5), torch.tensor([0, 1, 0])
    adv = pgd(linear, x, y, eps=0.1, steps=10, loss=loss, generator=seeded(0))
    slope = (linear.weight[y] - linear.weight[1 - y]).detach().view_as(x)
    torch.testing.assert_close(adv, x - 0.1 * slope.sign())


def test_linear_model_linf_at_the_border_of_pixels(linear: Linear) -> None:
    x, y = torch.rand(4, 3, 4, 4).round(), torch.tensor([0, 1, 0, 1])
    adv = pgd(linear, x, y, eps=0.1, steps=10, generator=seeded(0))
    slope = (linear.weight[y] - linear.weight[1 - y]).detach().view_as(x)
    torch.testing.assert_close(adv, (x - 0.1 * slope.sign()).clamp(0, 1))


def test_linear_model_l2_reaches_the_gradient_direction(linear: Linear) -> None:
    x, y = torch.full((3, 3, 4, 4), 0.5), torch.tensor([0, 1, 1])
    adv = pgd(linear, x, y, eps=0.4, steps=60, norm="l2", step_size=0.2, generator=seeded(0))
    slope = (linear.weight[y] - linear.weight[1 - y]).detach()
    expected = x - (0.4 * slope / slope.norm(dim=1, keepdim=True)).view_as(x)
    torch.testing.assert_close(adv, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("norm", NORMS)
def test_linear_model_is_fooled_just_beyond_its_distance_to_the_boundary(linear: Linear, norm) -> None:
    """The distance is margin / ||W_y - W_other||_dual: no attack within 0.95 of it, always one within 1.05."""
    x = torch.full((1, 3, 4, 4), 0.5)
    y = linear(x).argmax(1)
    slope = linear.weight[y] - linear.weight[1 - y]
    boundary = float((margin(linear(x), y) / (slope.abs().sum() if norm == "linf" else slope.norm())).detach())
    for factor, fooled in ((0.95, False), (1.05, True)):
        adv = pgd(linear, x, y, eps=factor * boundary, steps=40, norm=norm, generator=seeded(0))
        assert bool(margin(linear(adv), y) < 0) is fooled


@settings(max_examples=25, deadline=None)
@given(
    eps=st.floats(0, 2),
    steps=st.integers(1, 4),
    norm=st.sampled_from(NORMS),
    seed=st.integers(0, 1000),
    step_size=st.none() | st.floats(0, 3),
    loss=st.sampled_from(["ce", "margin"]),
)
def test_ball_and_pixel_range_are_kept(eps, steps, norm, seed, step_size, loss) -> None:
    x = torch.rand(2, 3, 8, 8, generator=seeded(seed))
    x[0] = x[0].round()  # at the borders of the range too
    y = torch.tensor([0, 1])
    before = x.clone()
    adv = pgd(NETWORK, x, y, eps=eps, steps=steps, norm=norm, step_size=step_size, loss=loss, generator=seeded(seed))
    assert distance(adv, x, norm).max() <= eps * (1 + 1e-5) + ROUNDING
    assert adv.min() >= 0
    assert adv.max() <= 1
    assert torch.equal(x, before)
    assert (margin(NETWORK(adv), y) <= margin(NETWORK(x), y) + 1e-4).all()


@settings(max_examples=25, deadline=None)
@given(eps=st.floats(0, 1), steps=st.integers(1, 4), seed=st.integers(0, 1000))
def test_training_attack_keeps_ball_and_range(eps, steps, seed) -> None:
    x = torch.rand(2, 3, 8, 8, generator=seeded(seed))
    adv = training_pgd(NETWORK, x, torch.tensor([0, 1]), eps=eps, steps=steps, generator=seeded(seed))
    assert distance(adv, x, "linf").max() <= eps + ROUNDING
    assert adv.min() >= 0
    assert adv.max() <= 1
    assert not adv.requires_grad


@pytest.mark.parametrize("norm", NORMS)
def test_no_budget_returns_the_image(norm) -> None:
    x = torch.rand(3, 3, 8, 8)
    assert torch.equal(pgd(NETWORK, x, torch.tensor([0, 1, 2]), eps=0, steps=3, norm=norm), x)


@pytest.mark.parametrize("norm", NORMS)
def test_more_steps_never_raise_the_margin(trained: SmallResNet, test_images: tuple[Tensor, Tensor], norm) -> None:
    x, y = (t[:32] for t in test_images)
    margins = [margin(trained(x), y)]
    for steps in (1, 3, 6, 12):
        adv = pgd(trained, x, y, eps=0.03, steps=steps, step_size=0.006, norm=norm, generator=seeded(0))
        margins.append(margin(trained(adv), y))
    for fewer, more in itertools.pairwise(margins):
        assert (more <= fewer + 1e-4).all()
    assert margins[-1].mean() < margins[1].mean() < margins[0].mean()


def test_more_restarts_never_raise_the_margin(trained: SmallResNet, test_images: tuple[Tensor, Tensor]) -> None:
    x, y = (t[:32] for t in test_images)
    one, four = (
        margin(trained(pgd(trained, x, y, eps=0.02, steps=2, restarts=r, generator=seeded(0))), y) for r in (1, 4)
    )
    assert (four <= one + 1e-4).all()
    assert (four < one - 1e-4).any()


def test_more_budget_fools_more_and_all_budget_fools_all(
    trained: SmallResNet, test_images: tuple[Tensor, Tensor]
) -> None:
    x, y = test_images
    robust = [float((trained(x).argmax(1) == y).float().mean())]
    for eps in (2 / 255, 8 / 255, 0.5):
        adv = pgd(trained, x, y, eps=eps, steps=10, generator=seeded(0))
        robust.append(float((trained(adv).argmax(1) == y).float().mean()))
    assert robust == sorted(robust, reverse=True)
    assert robust[0] > 0.9
    assert robust[-1] == 0


def test_generator_decides_the_result(trained: SmallResNet, test_images: tuple[Tensor, Tensor]) -> None:
    x, y = (t[:8] for t in test_images)
    runs = [pgd(trained, x, y, eps=0.03, steps=2, generator=seeded(s)) for s in (0, 0, 1)]
    assert torch.equal(runs[0], runs[1])
    assert not torch.equal(runs[0], runs[2])


def test_images_of_a_batch_do_not_touch_each_other(trained: SmallResNet, test_images: tuple[Tensor, Tensor]) -> None:
    """A neighbour's label changes nothing: same random start, same result."""
    x, y = (t[:4] for t in test_images)
    other = y.clone()
    other[3] = (y[3] + 1) % 4
    a, b = (pgd(trained, x, label, eps=0.03, steps=3, generator=seeded(0)) for label in (y, other))
    assert torch.equal(a[:3], b[:3])
    assert not torch.equal(a[3], b[3])


@pytest.mark.parametrize(
    "bad", [{"eps": -0.1, "steps": 1}, {"eps": 0.1, "steps": 0}, {"eps": 0.1, "steps": 1, "restarts": 0}]
)
def test_nonsense_is_refused(bad) -> None:
    with pytest.raises(ValueError, match="needed"):
        pgd(NETWORK, torch.rand(1, 3, 8, 8), torch.tensor([0]), **bad)


def test_direction_and_projection_in_closed_form() -> None:
    gradient = torch.tensor([3.0, 0.0, -4.0, 0.0]).view(1, 1, 2, 2)
    assert direction(gradient, "linf").flatten().tolist() == [1, 0, -1, 0]
    torch.testing.assert_close(direction(gradient, "l2").flatten(), torch.tensor([0.6, 0, -0.8, 0]))
    assert direction(torch.zeros(1, 1, 2, 2), "l2").eq(0).all()
    x = torch.full((1, 1, 2, 2), 0.5)
    far = x + gradient / 10
    torch.testing.assert_close((project(far, x, 0.1, "linf") - x).flatten(), torch.tensor([0.1, 0, -0.1, 0]))
    torch.testing.assert_close((project(far, x, 0.25, "l2") - x).flatten(), torch.tensor([0.15, 0, -0.2, 0]))
    torch.testing.assert_close(project(far, x, 0.6, "l2"), far)  # inside already


def test_attack_leaves_the_network_without_gradients() -> None:
    network = random_network(1)
    pgd(network, torch.rand(2, 3, 8, 8), torch.tensor([0, 1]), eps=0.1, steps=2)
    training_pgd(network, torch.rand(2, 3, 8, 8), torch.tensor([0, 1]), eps=0.1, steps=2)
    assert all(p.grad is None for p in network.parameters())


def test_every_image_may_have_a_radius_of_its_own() -> None:
    x, y = torch.rand(3, 3, 8, 8, generator=seeded(0)), torch.tensor([0, 1, 0])
    radii = torch.tensor([0.0, 0.02, 0.1])
    adv = training_pgd(NETWORK, x, y, eps=radii[:, None, None, None], steps=2, generator=seeded(1))
    reached = (adv - x).abs().flatten(1).amax(1)
    assert (reached <= radii + ROUNDING).all()
    assert (reached >= 0.9 * radii).all()


def test_one_step_from_noise_is_not_projected() -> None:
    x, y = torch.full((2, 3, 8, 8), 0.5), torch.tensor([0, 1])
    adv = noisy_fgsm(NETWORK, x, y, eps=0.02, noise=2.0, generator=seeded(1))
    assert 0.03 < float((adv - x).abs().max()) <= 0.06 + ROUNDING
    assert not adv.requires_grad
