"""Second opinions and the companions behind them; attacks have tests of their own."""

from __future__ import annotations

import copy
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch

from studies.evade import COMPANIONS, Edges, Grey, Half, both, drawn_views, systems, train_on
from studies.strict import Variant, strict_opinion
from training.data.augment import Augmentation
from training.defence.signals.margins import one_hot_margin, served_one_hot
from training.evaluate.harness.store import Store
from training.evaluate.measurements.systems import ALONE
from training.imaging.pixels import to_tensor
from training.util.module_modes import seeded


def test_what_companions_see() -> None:
    x = torch.rand(2, 3, 8, 8, generator=seeded(0))
    assert torch.allclose(Grey()(x)[:, 1], x.mean(1))
    board = torch.tensor([[0.0, 1.0], [1.0, 0.0]]).repeat(4, 4).expand(1, 3, 8, 8)
    assert torch.allclose(Half()(board), torch.full_like(board, 0.5))
    assert torch.allclose(Edges()(torch.full_like(x, 0.3)), torch.full_like(x, 0.5))


def test_training_goes_on_and_the_self_attack_bears_on_it(trained, toy) -> None:
    recipe = SimpleNamespace(augmentation=Augmentation())
    heads = []
    for consistency in (0.0, 0.0, 0.5):
        network, seen = copy.deepcopy(trained).requires_grad_(requires_grad=True), list[int]()
        train_on(
            network,
            toy,
            recipe,
            epochs=2,
            consistency=consistency,
            seed=0,
            progress=lambda done, _total, seen=seen: seen.append(done),
        )
        assert seen == [1, 2, 3, 4]
        assert not network.training
        heads.append(network.head.weight.detach())
    assert torch.equal(heads[0], heads[1])
    assert not torch.equal(heads[0], trained.head.weight)
    assert not torch.equal(heads[0], heads[2])


def test_opinions(defence, test_images) -> None:
    x = test_images[0][:6]
    one, other = defence.network, defence.companion
    label = served_one_hot(one(x)).detach()
    plain, margin = strict_opinion(other, steps=0), one_hot_margin(other(x), label)
    with torch.no_grad():
        assert torch.allclose(plain(x, label)[:, 0], margin, atol=1e-5)
        assert (strict_opinion(other)(x, label)[:, 0] <= margin + 1e-5).float().mean() > 0.8
        assert both(one, other)(x, label).shape == (6, 2)
        views = drawn_views(other, 0)
        assert not torch.equal(views(x, label), views(x, label))
    assert {role for role, *_ in systems(dict.fromkeys(COMPANIONS, one), 0).values()} <= set(COMPANIONS)


@pytest.mark.parametrize("draws", [1, 3])
def test_an_answer_is_won_if_it_is_wrong_and_no_opinion_is_below_the_limit(defence, toy, tmp_path, draws) -> None:
    bench = cast(
        Any, SimpleNamespace(defence=defence, data=toy, pixels=to_tensor, store=Store(tmp_path), networks_key="toy")
    )
    x = to_tensor(toy.test.x[:32])
    answers = defence.network(x).argmax(1)
    variant = Variant(bench, "toy", strict_opinion(defence.companion), draws=draws)
    limits = variant.thresholds
    assert limits == sorted(limits)
    wrong = (answers + 1) % 4
    assert not variant.judged(x, answers)[:, :3].any()
    won = variant.judged(x, wrong)
    with torch.no_grad():
        told = variant.opinion(x, served_one_hot(defence.network(x)))[:, 0].numpy()
    for column, limit in enumerate(limits):
        assert np.array_equal(won[:, column], told >= limit)
    assert variant.columns[3] == ALONE
