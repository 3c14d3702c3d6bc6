from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from gateway.core.manifest import Guard, Recovery
from gateway.core.verdict import Fusion, lead, preference
from training.attacks.joint_run import Seen, look
from training.attacks.neutralised import gated, harm, neutralised, still_wrong
from training.defence.graph import DefenceGraph
from training.defence.localisers import LOCALISERS
from training.defence.localisers.windows import window_sides
from training.imaging.inpaint import inpaint

LOCALISER = LOCALISERS["texture_colour"]


@pytest.fixture
def seen(defence: DefenceGraph, test_images: tuple[Tensor, Tensor]):
    x = test_images[0][:6].clone().requires_grad_(True)
    return x, look(defence, x)


def test_forwards_it_is_what_the_gateway_does(seen) -> None:
    x, _ = seen
    assert torch.equal(neutralised(x, LOCALISER), inpaint(x, LOCALISER.locate(x)[0]))


def test_backwards_the_window_can_be_moved(seen) -> None:
    """A hard mask alone leaves the window's own pixels without a gradient; the soft one tells how to move it."""
    x, _ = seen
    mask, _ = LOCALISER.locate(x)
    inside = (mask[:, None] > 0.5).expand_as(x)
    (hard,) = torch.autograd.grad(inpaint(x, mask.detach()).pow(2).sum(), x)
    assert (hard[inside] == 0).all()
    (soft,) = torch.autograd.grad(neutralised(x, LOCALISER).pow(2).sum(), x)
    assert (soft[inside] != 0).float().mean() > 0.9


def test_the_soft_window_is_a_distribution_over_windows(seen) -> None:
    x, _ = seen
    mask, _ = LOCALISER.locate(x)
    soft = LOCALISER.soft(x)
    area = torch.tensor([float(side) ** 2 for side in window_sides(*x.shape[2:])])
    assert ((soft.sum((1, 2)) >= area.min() - 1e-3) & (soft.sum((1, 2)) <= area.max() + 1e-3)).all()
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


def rule(threshold: float) -> Recovery:
    return Recovery(contrast_mean=10, contrast_std=2, lead_mean=1, lead_std=1, preference_rms=2, threshold=threshold)


@pytest.fixture
def second(defence: DefenceGraph, seen) -> Tensor:
    return defence.network(neutralised(seen[0], LOCALISER))


def strengths(x: Tensor, found: Seen, second: Tensor) -> Tensor:
    after, companion = second.detach().numpy(), found.companion.detach().numpy()
    prefers = preference(companion, found.logits.argmax(1).numpy(), after.argmax(1))
    return rule(0).strength(LOCALISER.locate(x)[1], *map(torch.from_numpy, (lead(after), prefers))).detach()


def test_harm_wants_the_first_answer_right_and_the_second_wrong_and_served(
    defence: DefenceGraph, seen, second: Tensor
) -> None:
    x, found = seen
    first, after = found.logits.argmax(1), second.argmax(1)

    def hinges(target: Tensor, label: Tensor, threshold: float = -100) -> list[list[bool]]:
        """Whether at most the margin that is asked for is missing."""
        return [(h < 0.5).tolist() for h in harm(rule(threshold))(defence, x, found, target, label)]

    assert [all(each) for each in hinges(after, first)] == [True, True, True]
    assert [any(each) for each in hinges((after + 1) % 4, first)] == [True, False, True]
    assert [any(each) for each in hinges(after, (first + 1) % 4)] == [False, True, True]
    assert [any(each) for each in hinges(after, first, 100)] == [True, True, False]
    assert len(harm(None)(defence, x, found, after, first)) == 2


def test_still_wrong_is_met_where_the_second_answer_is_the_target_or_not_served(
    defence: DefenceGraph, seen, second: Tensor
) -> None:
    x, found = seen
    after, middle = second.argmax(1), float(strengths(x, found, second).median())

    def unmet(target: Tensor, threshold: float) -> Tensor:
        (hinge,) = still_wrong(rule(threshold))(defence, x, found, target, target)
        return hinge

    assert (unmet(after, -100) < 0.5).all()
    assert (unmet((after + 1) % 4, -100) > 0.5).all()
    assert (unmet((after + 1) % 4, 100) == 0).all()
    served = (strengths(x, found, second) > middle).float()
    assert torch.equal((unmet((after + 1) % 4, middle) > 0.1).float() * served, served)
    assert still_wrong(None)(defence, x, found, after, after) == []
