from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from gateway.bundle import Guard
from gateway.verdict import Fusion
from training.attacks.joint import look
from training.attacks.neutralised import gated, harm, neutralised, soft_window, still_wrong
from training.defence.graph import DefenceGraph
from training.defence.inpaint import inpaint


@pytest.fixture
def seen(defence: DefenceGraph, test_images: tuple[Tensor, Tensor]):
    x = test_images[0][:6].clone().requires_grad_(True)
    return x, look(defence, x)


def test_forwards_it_is_what_the_gateway_does(defence: DefenceGraph, seen) -> None:
    x, found = seen
    mask, _ = defence.region_of_attack(x, found.taps)
    assert torch.equal(neutralised(defence, x, found.taps), inpaint(x, mask))


def test_backwards_the_window_can_be_moved(defence: DefenceGraph, seen) -> None:
    """A hard mask alone leaves the window's own pixels without a gradient; the soft one tells how to move it."""
    x, found = seen
    mask, _ = defence.region_of_attack(x, found.taps)
    inside = (mask[:, None] > 0.5).expand_as(x)
    (hard,) = torch.autograd.grad(inpaint(x, mask.detach()).pow(2).sum(), x)
    assert (hard[inside] == 0).all()
    (soft,) = torch.autograd.grad(neutralised(defence, x, found.taps).pow(2).sum(), x)
    assert (soft[inside] != 0).float().mean() > 0.9


def test_the_soft_window_is_a_distribution_over_windows(defence: DefenceGraph, seen) -> None:
    x, found = seen
    mask, _ = defence.region_of_attack(x, found.taps)
    soft = soft_window(defence, x, found.taps)
    torch.testing.assert_close(soft.sum((1, 2)), mask.sum((1, 2)), rtol=1e-4, atol=0)
    assert soft.min() >= 0
    assert soft.max() <= 1 + 1e-5
    # The hard window is the likeliest one.
    assert ((soft * mask).sum((1, 2)) > 2 * mask.mean((1, 2)) * soft.sum((1, 2))).all()


def fusion_of(scores: Tensor, guard: Guard | None) -> Fusion:
    """Benign scores around those seen."""
    benign = scores.detach().numpy().mean(0) + np.linspace(-1, 1, 200)[:, None] * np.ones(scores.shape[1])
    names = ["a", "b", "c", "d"]
    return Fusion.fit(benign, names, names, guard)


@pytest.mark.parametrize("guard", [None, Guard(score="d", share_below=0.5, share=0.8, knee=0.01)])
def test_gated_is_met_just_where_the_gate_is_up(guard: Guard | None) -> None:
    scores = torch.linspace(-2, 4, 25)[:, None].expand(-1, 4).clone()
    logits = torch.tensor([[1.0, 0.0]]).expand(25, -1)
    companion = torch.stack([-scores[:, 3], torch.zeros(25)], 1)  # its margin is minus the guard's score
    fusion, level = fusion_of(torch.zeros(1, 4), guard), 0.1
    (hinge,) = gated(fusion, level)(logits, companion, scores, torch.zeros(25, dtype=torch.long))
    up = torch.from_numpy(-fusion.statistic(scores.numpy().astype(np.float64)) <= level)
    assert up.any()
    assert not up.all()
    assert (up >= (hinge == 0)).all()  # the hinge asks for a little more
    assert (hinge == 0).any()
    assert (hinge[~up] > 0).all()


def test_harm_wants_the_first_answer_right_and_the_second_wrong(defence: DefenceGraph, seen) -> None:
    x, found = seen
    fusion = fusion_of(found.scores, None)
    first = found.logits.argmax(1)
    second = look(defence, neutralised(defence, x, found.taps)).logits.argmax(1)
    other = (first + 1) % 4

    def hinges(target: Tensor, label: Tensor) -> list[Tensor]:
        return harm(fusion, 0.1)(defence, x, found, target, label)

    right, wrong, late = hinges(second, first), hinges(second, other), hinges((second + 1) % 4, first)
    # At most the margin that is asked for is missing, or more than that.
    assert [bool((hinge < 0.5).all()) for hinge in right[:2]] == [True, True]
    assert [bool((hinge < 0.5).all()) for hinge in wrong[:2]] == [False, True]
    assert [bool((hinge < 0.5).all()) for hinge in late[:2]] == [True, False]
    for one, two in zip(right[1:], still_wrong(fusion, 0.1)(defence, x, found, second, first), strict=True):
        assert torch.equal(one, two)
