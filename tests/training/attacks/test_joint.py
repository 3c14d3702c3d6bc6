"""The joint attack on linear networks, where the best perturbation of a targeted attack is known."""

from __future__ import annotations

import copy
from typing import Any, Literal, cast

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import training.attacks.coarse
from gateway.core.manifest import Guard
from gateway.core.verdict import Fusion, component_p, fisher
from tests.training.toy import Linear
from training.attacks.coarse import searched_defence
from training.attacks.conditions import companion_says, confident, evidence, screened, unflagged, unobjected
from training.attacks.joint import joint_attack
from training.attacks.joint_patch import joint_patch_attack
from training.attacks.joint_run import rank_targets
from training.attacks.margin import margin
from training.attacks.patch import patch_attack
from training.attacks.pgd import random_start
from training.defence.graph import DefenceGraph
from training.models.resnet import SmallResNet
from training.util.module_modes import seeded
from training.util.precision import Choice

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
        self.network, self.companion, self.slope = Network(weight), Network(3 * weight), slope

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


def as_graph(defence: Defence) -> DefenceGraph:
    """It has what the attacks ask of a graph."""
    return cast(DefenceGraph, defence)


def wrong(defence: Defence, rates: int = 1):
    """An image counts as soon as the network is wrong."""
    return lambda adv, y: (defence.network(adv).argmax(1) != y)[:, None].expand(-1, rates).clone()


def origin(adv: Tensor, x: Tensor) -> Tensor:
    """Which of the images `x` each of `adv` was made of: the nearest."""
    return (adv[:, None] - x[None]).abs().flatten(2).amax(2).argmin(1)


def attack(defence: Defence, x: Tensor, y: Tensor, beaten, *, eps: float = 0.05, **changed: Any) -> Tensor:
    settings: dict[str, Any] = {
        "steps": 20,
        "targets": 1,
        "conditions": unflagged(FUSION, 0.3),
        "full_precision": True,
    } | changed
    return joint_attack(as_graph(defence), x, y, eps=eps, beaten=beaten, **settings)


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
    moved = torch.cat([adv - x[origin(adv, x)] for adv in seen])
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
    first = {slope: (adv - x[origin(adv, x)]).flatten(1)[:, 0] for slope, adv in last.items()}
    torch.testing.assert_close(first[4.0], torch.full_like(first[4.0], -0.05))
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
    won = attack(
        defence, x, y, wrong(defence), eps=0.9, steps=40, order=(1 - y)[:, None], progress=lambda *now: told.append(now)
    )
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
    guard = Guard(score="companion_margin", share_below=0.5, share=0.8, knee=0.01)
    fusion = Fusion.fit(BENIGN, ["a", guard.score], ["a"], guard)
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


def test_a_capped_score_costs_what_the_gateway_makes_of_it_and_no_more() -> None:
    """Beyond all benign scores the p-value of one falls no further; uncapped evidence goes on rising."""
    far = np.array([[50.0, BENIGN[:, 1].min()], [5000.0, BENIGN[:, 1].min()]])
    scores = torch.from_numpy(far).float().requires_grad_(True)
    columns = [0, 1]
    ordered = np.sort(BENIGN, axis=0)
    capped, free = (evidence(ordered, columns, capped=cap)(scores) for cap in (True, False))
    assert capped[0] == capped[1]
    assert np.allclose(capped.detach().numpy(), fisher(component_p(ordered, far)), atol=0.1)
    assert free[1] > free[0] > capped[0]
    assert torch.autograd.grad(capped.sum(), scores)[0][:, 0].tolist() == [0, 0]
    inside = torch.from_numpy(ordered[::7]).float()
    assert torch.equal(evidence(ordered, columns)(inside), evidence(ordered, columns, capped=True)(inside))


def test_jitter_moves_what_is_looked_at_and_not_what_is_judged(weight: Tensor, images) -> None:
    defence, (x, y) = Defence(weight), images
    judged: list[Tensor] = []
    looked: list[Tensor] = []

    def beaten(adv: Tensor, label: Tensor) -> Tensor:
        judged.append(adv)
        return torch.zeros(len(label), 1, dtype=torch.bool)

    defence.companion.register_forward_pre_hook(lambda _, given: looked.append(given[0].detach()))
    attack(
        defence,
        x,
        y,
        beaten,
        eps=0.02,
        samples=3,
        jitter=0.05,
        steps=4,
        looks="networks",
        conditions=companion_says,
        order=(1 - y)[:, None],
        generator=seeded(0),
    )
    assert len(looked) == 5 * 3
    moved = max(float((seen - x).abs().max()) for seen in looked)
    assert 0.03 < moved <= 0.07 + 1e-6
    assert max(float((adv - x).abs().max()) for adv in judged) <= 0.02 + 1e-6


def test_a_strict_objection_counts_once_the_target_is_answered() -> None:
    answered, other = torch.tensor([[0.0, 2.0]]), torch.tensor([[2.0, 0.0]])
    companion, target = torch.tensor([[0.0, 3.0]]), torch.tensor([1])
    told = torch.tensor([4.0])
    for logits, score, expected in (
        (answered, "companion_margin", 0.0),  # -3 is below the limit of 1
        (other, "companion_margin", 0.0),
        (answered, "companion_strict", 3.1),
        (other, "companion_strict", 0.0),  # of another answer: the plain margin stands in
        (other, "class_distance", 3.1),  # no companion's, so that nothing stands in
    ):
        hinge = unobjected(score, 1.0, logits, companion, told, target)
        torch.testing.assert_close(hinge, torch.tensor([expected]))


def test_the_screens_conditions_are_met_below_its_threshold() -> None:
    answered = torch.tensor([[1.0, 0.0]])
    target = torch.zeros(1, dtype=torch.long)
    for score, met in ((0.1, True), (1.6, False)):
        hinges = screened(FUSION, [0, 1], 5.0)(answered, answered, torch.full((1, 2), score), target)
        assert bool(sum(hinges) == 0) is met


def test_only_what_is_looked_at_is_computed(weight: Tensor, images) -> None:
    defence, (x, y) = Defence(weight), images

    def errs(adv: Tensor, label: Tensor) -> Tensor:
        return (adv.flatten(1) @ (3 * weight).T).argmax(1)[:, None] != label[:, None]

    everything = attack(defence, x, y, errs, eps=0.01, conditions=companion_says)
    assert defence.network.asked > 0
    defence.network.asked = 0
    assert torch.equal(attack(defence, x, y, errs, eps=0.01, conditions=companion_says, looks="companion"), everything)
    assert defence.network.asked == 0

    def both(logits: Tensor, companion: Tensor, scores: Tensor, _target: Tensor) -> list[Tensor]:
        assert scores.shape == (len(logits), 0)
        torch.testing.assert_close(companion, 3 * logits)
        return [logits.sum(1) * 0]

    attack(defence, x, y, errs, conditions=both, looks="networks", steps=2)


def test_every_restart_tries_every_target_from_elsewhere(weight: Tensor, images) -> None:
    defence, (x, y) = Defence(weight), images

    def never(adv: Tensor, label: Tensor) -> Tensor:
        return torch.zeros(len(label), 1, dtype=torch.bool)

    attack(defence, x, y, never, steps=4, restarts=3, untargeted=True, generator=seeded(0))
    assert defence.network.asked == 3 * 2 * 5  # three rounds, untargeted and one target, four steps and a last look

    starts: list[Tensor] = []

    class Watching(Defence):
        def detector_scores(self, x: Tensor, *rest: object) -> tuple[Tensor, Tensor]:
            starts.append(x.detach())
            return super().detector_scores(x, *rest)

    attack(Watching(weight), x, y, never, steps=1, restarts=2, generator=seeded(0))
    assert torch.equal(starts[0], x)
    assert 0.01 < (starts[2] - x).abs().mean() < 0.04
    assert (starts[2] - x).abs().max() <= 0.05 + 1e-6


def test_targets_are_ranked_at_the_image_and_at_its_adversarial() -> None:
    """Class 2 is far at the image, and nearest once the pixels that class 0 rests on are changed."""
    weight = torch.zeros(4, 48)
    weight[0, :24], weight[1, 24:], weight[2, :24], weight[3] = 1.0, 0.45, -1.0, -3.0
    predict = Linear(weight, torch.tensor([0.0, 0.0, 17.0, 0.0]))
    x, y = torch.full((2, *SHAPE), 0.5), torch.tensor([0, 0])
    assert predict(x)[0].argsort(descending=True).tolist() == [0, 1, 2, 3]
    order, nearest = rank_targets(predict, x, y, eps=0.2, targets=9)
    assert predict(nearest).argmax(1).tolist() == [2, 2]
    assert order.tolist() == [[2, 1, 3]] * 2
    assert rank_targets(predict, x, y, eps=0.2, targets=1)[0].tolist() == [[2]] * 2


def test_confidence_is_a_large_margin_of_both() -> None:
    target, sure, unsure = torch.zeros(1, dtype=torch.long), torch.tensor([[9.0, 0.0]]), torch.tensor([[1.0, 0.0]])
    nothing = torch.zeros(1, 0)
    assert [h.item() for h in confident(sure, sure, nothing, target)] == [0, 0]
    assert [h.item() > 0 for h in confident(sure, unsure, nothing, target)] == [False, True]
    assert [h.item() > 0 for h in confident(unsure, sure, nothing, target)] == [True, False]


def test_patches_that_are_joint_saturate(weight: Tensor) -> None:
    """One place, a companion of one mind with the network: what falls is what a patch against either of them fells."""
    defence = Defence(weight)
    y = torch.arange(60) % 2
    slope = (weight[y] - weight[1 - y]).view(60, *SHAPE)
    x = 0.5 + 0.5 * torch.rand(60, 1, 1, 1, generator=seeded(6)) * slope.sign()
    drawn = seeded(1)
    random_start(x, 1.0, "linf", drawn)  # the ranking's, before the place is drawn
    plain, _ = patch_attack(defence.network, x, y, side=2, places=1, probe_steps=40, generator=drawn)
    expected = defence.network(plain).argmax(1) != y
    won = joint_patch_attack(
        as_graph(defence),
        x,
        y,
        side=2,
        places=1,
        probe_steps=10,
        steps=40,
        targets=1,
        conditions=unflagged(FUSION, 0.3),
        beaten=wrong(defence),
        full_precision=True,
        generator=seeded(1),
    )
    assert 0 < expected.sum() < len(x)
    assert torch.equal(won[:, 0], expected)


def test_afterwards_adds_hinges(weight: Tensor, images) -> None:
    """A condition of the caller's own: the last pixel, which no network sees, has to go up."""
    x, y = images
    weight[:, -1] = 0.0
    defence, judged = Defence(weight), []

    def beaten(adv: Tensor, label: Tensor) -> Tensor:
        judged.append(adv)
        return torch.zeros(len(label), 1, dtype=torch.bool)

    def afterwards(_defence, adv: Tensor, seen, target: Tensor, label: Tensor) -> list[Tensor]:
        assert torch.equal(label, y)
        assert torch.equal(target, 1 - y)
        torch.testing.assert_close(seen.logits, defence.network(adv))
        return [(1 - adv.flatten(1)[:, -1]).relu()]

    attack(defence, x, y, beaten, afterwards=afterwards, order=(1 - y)[:, None])
    torch.testing.assert_close(judged[-1].flatten(1)[:, -1], x.flatten(1)[:, -1] + 0.05)


def test_the_coarse_search_is_judged_exactly(
    trained: SmallResNet, defence: DefenceGraph, test_images: tuple[Tensor, Tensor]
) -> None:
    defence = DefenceGraph(copy.deepcopy(trained), copy.deepcopy(trained), defence.constants)
    x = test_images[0][:12]
    y = defence.network(x).argmax(1)
    judged = []

    def beaten(adv: Tensor, label: Tensor) -> Tensor:
        fallen = defence.network(adv).argmax(1) != label
        judged.append(fallen)
        return fallen[:, None]

    won = joint_attack(
        defence, x, y, eps=4 / 255, steps=8, targets=2, conditions=confident, looks="networks", beaten=beaten
    )
    assert won[:, 0].sum() == sum(int(fallen.sum()) for fallen in judged)  # each is left alone once it has fallen
    assert won.any()


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_the_search_is_in_the_precision_that_the_machine_is_made_for(
    trained: SmallResNet,
    defence: DefenceGraph,
    test_images: tuple[Tensor, Tensor],
    monkeypatch: pytest.MonkeyPatch,
    precision: Literal["bf16", "fp32"],
) -> None:
    monkeypatch.setattr(training.attacks.coarse, "machine_precision", lambda _device: Choice(precision, "so it is"))
    defence = DefenceGraph(copy.deepcopy(trained), copy.deepcopy(trained), defence.constants)
    x = test_images[0][:12].clone().requires_grad_(True)
    required = [parameter.requires_grad for parameter in defence.network.parameters()]
    rough = searched_defence(defence)
    searching, exact = rough.network(x), defence.network(x)
    assert searching.dtype == rough.network.taps(x)[1]["stage2"].dtype == torch.float32
    torch.testing.assert_close(searching, exact, atol=0.1, rtol=0.05)
    with torch.no_grad():  # where it is judged
        torch.testing.assert_close(rough.network(x), exact, atol=1e-5, rtol=1e-5)
    apart = float((searching - exact).detach().abs().max())
    assert apart > 1e-4 if precision == "bf16" else apart < 1e-5
    assert rough.network.tap_channels == defence.network.tap_channels
    assert defence.network is not rough.network
    assert [parameter.requires_grad for parameter in defence.network.parameters()] == required
