"""The joint attack on linear networks, where the best perturbation of a targeted attack is known."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from gateway.bundle import Guard
from gateway.verdict import Fusion
from tests.training.toy import Linear
from training.attacks.joint import companion_says, joint_attack, screened, unflagged
from training.attacks.margin import margin
from training.modes import seeded

LEVEL = torch.tensor([1.0, 1.0])
BENIGN = np.linspace([0.0, 0.0], [1.5, 1.5], 400)
FUSION = Fusion.fit(BENIGN, ["a", "b"], ["a", "b"])
SHAPE = (3, 4, 4)


class Network(Linear):
    """A linear network without layers; counts how often it is asked."""

    asked = 0

    def taps(self, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        self.asked += 1
        return self(x), {}


class Defence(nn.Module):
    """Linear network and companion of one direction; scores that are constant, or rise with the first pixel."""

    def __init__(self, weight: Tensor, *, slope: float = 0.0) -> None:
        super().__init__()
        self.network, self.companion, self.slope = Network(weight), Linear(3 * weight), slope

    def detector_scores(self, x: Tensor, *_: object) -> tuple[Tensor, Tensor]:
        first = x.flatten(1)[:, :1]
        return LEVEL - 0.5 + self.slope * first.expand(-1, 2), first


@pytest.fixture
def weight() -> Tensor:
    made = torch.randn(2, 48, generator=seeded(3)) * 0.5
    return made - made.mean(1, keepdim=True)  # a grey image is on the boundary


@pytest.fixture
def images(weight: Tensor) -> tuple[Tensor, Tensor]:
    x = 0.3 + 0.4 * torch.rand(60, *SHAPE, generator=seeded(4))
    return x, Linear(weight)(x).argmax(1)


def wrong(defence: Defence, rates: int = 1):
    """An image counts as soon as the network is wrong."""
    return lambda adv, y: (defence.network(adv).argmax(1) != y)[:, None].expand(-1, rates).clone()


def attack(defence: Defence, x: Tensor, y: Tensor, beaten, *, eps: float = 0.05, **changed: object) -> Tensor:
    settings = {"steps": 20, "targets": 1, "conditions": unflagged(FUSION, 0.3)} | changed
    return joint_attack(defence, x, y, eps=eps, beaten=beaten, **settings)


@pytest.mark.parametrize("eps", [0.005, 0.01, 0.02])
def test_reaches_the_target_whenever_the_sign_attack_does(weight: Tensor, images, eps: float) -> None:
    """The corner x + eps sign(W_target - W_y) is the worst point of the ball for a linear margin: no less, no more."""
    defence, (x, y) = Defence(weight), images
    slope = (weight[1 - y] - weight[y]).view_as(x)
    fallen = margin(defence.network(x + eps * slope.sign()), y) < 0
    assert 0 < fallen.sum() < len(x)
    assert torch.equal(attack(defence, x, y, wrong(defence), eps=eps)[:, 0], fallen)


def test_every_image_that_is_judged_is_in_the_ball_and_in_range(weight: Tensor, images) -> None:
    defence, (x, y) = Defence(weight), images
    x = torch.where(torch.rand(x.shape, generator=seeded(5)) < 0.3, x.round(), x)
    seen: list[Tensor] = []

    def beaten(adv: Tensor, label: Tensor) -> Tensor:
        seen.append(adv)
        return torch.zeros(len(label), 1, dtype=torch.bool)

    attack(defence, x, y, beaten, eps=0.1)
    moved = torch.stack([adv - x for adv in seen])
    assert moved.abs().max() <= 0.1 + 1e-6
    assert moved.abs().max() > 0.09
    assert min(adv.min() for adv in seen) >= 0
    assert max(adv.max() for adv in seen) <= 1


def test_won_is_by_rate_and_falls_with_it(weight: Tensor, images) -> None:
    """An image unflagged at a higher rate is unflagged at a lower one: (N, A), monotone along A."""
    defence, (x, y) = Defence(weight, slope=2.0), images
    cutoffs = torch.tensor([0.6, 0.5, 0.4])  # a detector that flags a bright first pixel, ever more of them

    def beaten(adv: Tensor, label: Tensor) -> Tensor:
        return (defence.network(adv).argmax(1) != label)[:, None] & (adv.flatten(1)[:, :1] < cutoffs)

    won = attack(defence, x, y, beaten)
    assert won.shape == (len(x), 3)
    assert won.dtype == torch.bool
    assert (won[:, :-1] >= won[:, 1:]).all()
    assert won[:, 0].sum() > won[:, 2].sum() > 0


def test_scores_above_their_level_are_pushed_down(weight: Tensor, images) -> None:
    """The first pixel, which alone moves the scores, goes down although the margin would take it elsewhere."""
    x, y = images
    weight[:, 0] = 0.0
    last: dict[float, Tensor] = {}
    for slope in (0.0, 4.0):

        def beaten(adv: Tensor, label: Tensor, slope: float = slope) -> Tensor:
            last[slope] = adv
            return torch.zeros(len(label), 1, dtype=torch.bool)

        attack(Defence(weight, slope=slope), x, y, beaten)
    first = {slope: (adv - x).flatten(1)[:, 0] for slope, adv in last.items()}
    torch.testing.assert_close(first[4.0], torch.full((len(x),), -0.05))
    assert (first[0.0] == 0).all()


def test_an_impossible_detector_is_never_beaten(weight: Tensor, images) -> None:
    defence, (x, y) = Defence(weight), images
    won = attack(defence, x, y, lambda _adv, label: torch.zeros(len(label), 2, dtype=torch.bool), eps=1.0)
    assert won.shape == (len(x), 2)
    assert not won.any()


def test_stops_when_all_have_fallen(weight: Tensor, images) -> None:
    defence, (x, y) = Defence(weight), images
    assert attack(defence, x, y, lambda _adv, label: torch.ones(len(label), 1, dtype=torch.bool)).all()
    assert defence.network.asked == 0  # fallen as they came
    told: list[tuple[int, int]] = []
    won = attack(defence, x, y, wrong(defence), eps=0.9, steps=40, progress=lambda *now: told.append(now))
    assert won.all()
    assert defence.network.asked == 5  # the first look after five steps was enough
    assert told[-1] == (40, 40)


def test_more_targets_than_classes_are_tried_once_each(weight: Tensor, images) -> None:
    """Two classes leave one target; asking for three is no error and finds the same."""
    defence, (x, y) = Defence(weight), images
    assert torch.equal(attack(defence, x, y, wrong(defence), targets=3), attack(defence, x, y, wrong(defence)))


def test_the_companion_alone_is_moved_by_its_own_condition(weight: Tensor, images) -> None:
    defence, (x, y) = Defence(weight), images

    def errs(adv: Tensor, label: Tensor) -> Tensor:
        return (defence.companion(adv).argmax(1) != label)[:, None]

    expected = margin(defence.companion(x + 0.02 * (weight[1 - y] - weight[y]).view_as(x).sign()), y) < 0
    won = attack(defence, x, y, errs, eps=0.02, conditions=companion_says)
    assert 0 < won.sum() < len(x)
    assert torch.equal(won[:, 0], expected)


def test_hinges_are_zero_just_where_the_system_does_not_object() -> None:
    """The fused limit and the guard's, as `Fusion` draws them: no hinge below both, one for each that is crossed."""
    fusion = Fusion.fit(BENIGN, ["a", "b"], ["a"], Guard(score="b", share_below=0.5, share=0.8, knee=0.01))
    level = 0.1
    _, objection = fusion.limits(level)
    target = torch.zeros(4, dtype=torch.long)
    answered = torch.tensor([[1.0, 0.0]]).expand(4, -1)
    companion = torch.tensor([[-objection + 0.2, 0.0], [-objection + 0.05, 0.0]]).repeat(2, 1)
    scores = torch.tensor([[0.5, 0.0], [0.5, 0.0], [1.6, 0.0], [1.6, 0.0]])
    hinges = torch.stack(unflagged(fusion, level)(answered, companion, scores, target))
    assert (hinges > 0).tolist() == [[False] * 4, [False, False, True, True], [False, True, False, True]]
    calm, loud = fusion.statistic(np.array([[0.5, objection - 0.01], [0.5, objection + 0.01]]))
    assert -calm > level > -loud
    assert fusion.statistic(np.array([[1.6, 0.0]]))[0] > -level


def test_the_screens_conditions_are_met_below_its_threshold() -> None:
    answered = torch.tensor([[1.0, 0.0]])
    target = torch.zeros(1, dtype=torch.long)
    for score, met in ((0.1, True), (1.6, False)):
        hinges = screened(FUSION, [0, 1], 5.0)(answered, answered, torch.full((1, 2), score), target)
        assert (sum(hinges) == 0).item() is met
