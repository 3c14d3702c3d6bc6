from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.training.toy import Linear, softplus_network
from training.losses.input_gradient import Method, gradient_penalty
from training.losses.selective import label_odds, label_score, off_mask_share, selective_probe
from training.util.module_modes import seeded
from training.util.signatures import Predict

BOTH = pytest.mark.parametrize("method", ["double_backprop", "finite_difference"])
FORMS = pytest.mark.parametrize("form", ["absolute", "ratio"])


@pytest.fixture
def network() -> nn.Module:
    return softplus_network()


@pytest.fixture
def x() -> Tensor:
    return torch.rand(4, 2, 5, 5, dtype=torch.float64, generator=seeded(0))


Y = torch.tensor([0, 1, 2, 1])


def penalty(
    predict: Predict,
    x: Tensor,
    y: Tensor,
    important: Tensor,
    form: str = "absolute",
    method: Method = "double_backprop",
) -> Tensor:
    return gradient_penalty(selective_probe(y, important, form=form), predict, x, method=method)


def mask(value: float) -> Tensor:
    return torch.full((4, 5, 5), value, dtype=torch.float64)


def half_mask() -> Tensor:
    m = mask(0)
    m[:, :, :2] = 1
    return m


def test_label_score_is_the_log_probability() -> None:
    logits = torch.randn(4, 3)
    torch.testing.assert_close(label_score(logits, Y), -F.cross_entropy(logits, Y, reduction="none"))


@FORMS
@BOTH
def test_everything_important_costs_exactly_nothing(method: Method, form: str, network: nn.Module, x: Tensor) -> None:
    assert penalty(network, x, Y, mask(1), form, method).detach() == 0.0


def test_nothing_important_is_the_full_input_gradient_penalty(network: nn.Module, x: Tensor) -> None:
    leaf = x.clone().requires_grad_()
    F.cross_entropy(network(leaf), Y, reduction="sum").backward()
    expected = leaf.grad.flatten(1).pow(2).sum(1).mean()
    assert expected > 0
    torch.testing.assert_close(penalty(network, x, Y, mask(0)).detach(), expected)


def test_linear_model_in_closed_form() -> None:
    """d log p_y / dx = W_y - sum_k p_k W_k."""
    weight, x, y = torch.randn(3, 18), torch.rand(2, 2, 3, 3), torch.tensor([2, 0])
    important = torch.rand(2, 3, 3, generator=seeded(1)).round()
    model = Linear(weight)
    gradient = (weight[y] - model(x).softmax(1) @ weight).view(2, 2, 3, 3)
    outside = gradient * (1 - important[:, None])
    torch.testing.assert_close(penalty(model, x, y, important), outside.pow(2).sum((1, 2, 3)).mean())
    share = outside.flatten(1).norm(dim=1) / gradient.flatten(1).norm(dim=1)
    assert share.min() > 0.1
    assert share.max() < 0.99
    torch.testing.assert_close(off_mask_share(model, x, y, important), share)
    torch.testing.assert_close(penalty(model, x, y, important, "ratio"), share.pow(2).mean())


@BOTH
def test_gradient_inside_the_mask_is_free_in_the_absolute_form(method: Method) -> None:
    """Two classes and balanced logits: weights that read important pixels alone change nothing."""
    important = torch.zeros(1, 2, 2)
    important[0, 0] = 1
    x, y = torch.zeros(1, 1, 2, 2, dtype=torch.float64), torch.tensor([0])
    weight = torch.randn(2, 4, dtype=torch.float64, generator=seeded(1))
    edited = weight.clone()
    edited[:, :2] *= 7
    before, after = (penalty(Linear(w), x, y, important.double(), method=method) for w in (weight, edited))
    assert before > 0
    torch.testing.assert_close(after, before)
    edited[:, 2:] *= 7
    assert penalty(Linear(edited), x, y, important.double(), method=method) > 2 * before


@BOTH
def test_the_ratio_is_of_the_map_and_not_of_its_size(method: Method, network: nn.Module, x: Tensor) -> None:
    """Logits times a are another size of gradient: the absolute form pays, the ratio does not."""
    weight = torch.randn(2, 50, dtype=torch.float64, generator=seeded(1))
    y = torch.tensor([0, 1, 1, 0])
    ratios = [penalty(Linear(a * weight), x, y, half_mask(), "ratio", method).detach() for a in (0.1, 1.0)]
    torch.testing.assert_close(ratios[0], ratios[1])
    absolutes = [penalty(Linear(a * weight), x, y, half_mask(), "absolute", method).detach() for a in (0.1, 1.0)]
    assert absolutes[1] > 2 * absolutes[0]


@BOTH
def test_the_ratio_has_no_slope_along_the_scale_of_the_gradient(method: Method, x: Tensor) -> None:
    """Two classes: g is the difference of the weights' rows, and <W, d ratio / d W> = 0."""
    model = Linear(torch.randn(2, 50, dtype=torch.float64, generator=seeded(1)))
    (gradient,) = torch.autograd.grad(
        penalty(model, x, torch.tensor([0, 1, 1, 0]), half_mask(), "ratio", method), [model.weight]
    )
    along = (gradient * model.weight.detach()).sum() / (gradient.norm() * model.weight.detach().norm())
    assert gradient.norm() > 0
    assert float(along) == pytest.approx(0, abs=1e-6)


def test_descending_the_ratio_moves_the_gradient_into_the_mask(x: Tensor) -> None:
    model = Linear(torch.randn(3, 50, dtype=torch.float64, generator=seeded(1)))
    before = off_mask_share(model, x, Y, half_mask()).mean()
    for _ in range(20):
        (slope,) = torch.autograd.grad(penalty(model, x, Y, half_mask(), "ratio"), [model.weight])
        with torch.no_grad():
            model.weight -= 10 * slope
    assert off_mask_share(model, x, Y, half_mask()).mean() < 0.7 * before


def test_log_odds_of_the_label_and_where_its_gradient_points(network: nn.Module, x: Tensor) -> None:
    logits = torch.randn(4, 3, dtype=torch.float64)
    p = logits.softmax(1)[torch.arange(4), Y]
    torch.testing.assert_close(label_odds(logits, Y), (p / (1 - p)).log())
    leaf = x.clone().requires_grad_()
    gradients = [torch.autograd.grad(s(network(leaf), Y).sum(), leaf)[0].flatten(1) for s in (label_score, label_odds)]
    cosine = torch.cosine_similarity(*gradients, dim=1)
    torch.testing.assert_close(cosine, torch.ones_like(cosine))


def test_the_ratio_of_a_sure_network_is_finite() -> None:
    weight = 400 * torch.randn(3, 50, generator=seeded(1))
    model, x = Linear(weight), torch.rand(4, 2, 5, 5)
    y = model(x).argmax(1)
    for method in ("double_backprop", "finite_difference"):
        value = penalty(model, x, y, half_mask().float(), "ratio", method)
        (slope,) = torch.autograd.grad(value, [model.weight])
        assert 0.1 < float(value.detach()) < 1
        assert slope.isfinite().all()


def test_off_mask_share_at_the_ends(network: nn.Module, x: Tensor) -> None:
    torch.testing.assert_close(off_mask_share(network, x, Y, mask(0)), torch.ones(4, dtype=torch.float64))
    assert off_mask_share(network, x, Y, mask(1)).eq(0).all()
