"""Hinges of who knows the pool: zero where the pool is on his side, and with a way there where it is not."""

from __future__ import annotations

import torch

from gateway.core.rules import PoolRule
from tests.training.small_fields import random_small_field
from training.attacks.joint_run import Seen
from training.attacks.pooled import overruled
from training.defence.graph import DefenceGraph
from training.util.module_modes import seeded

RULE = PoolRule(answering=0.5, companion=1.0, threshold=0.1, harmed=0.01, n=100, groups=20)
TARGET, LABEL = torch.tensor([1, 1]), torch.tensor([0, 0])


def seen(answering: torch.Tensor, companion: torch.Tensor) -> Seen:
    return Seen(answering, {}, companion, torch.zeros(2, 1))


def test_the_hinge_is_met_where_the_pool_says_the_target_clearly(defence: DefenceGraph) -> None:
    answering = torch.tensor([[9.0, 0, 0], [9.0, 0, 0]])
    companion = torch.tensor([[0, 9.0, 0], [9.0, 0, 0]], requires_grad=True)
    (hinge,) = overruled(RULE, None)(defence, torch.zeros(2, 3, 12, 12), seen(answering, companion), TARGET, LABEL)
    assert hinge[0] == 0
    assert hinge[1] > 1
    (gradient,) = torch.autograd.grad(hinge.sum(), companion)
    assert (gradient[0] == 0).all()
    assert gradient[1, 1] < -0.1  # though the networks are sure
    assert gradient[1, 0] > 0.1


def test_the_network_of_small_fields_is_heard(defence: DefenceGraph) -> None:
    network = random_small_field(classes=3, side=12)
    images = torch.rand(2, 3, 12, 12, generator=seeded(0), requires_grad=True)
    rule = RULE.model_copy(update={"small_field": 0.8})
    logits = torch.zeros(2, network.cells(images).shape[1])
    (hinge,) = overruled(rule, network)(defence, images, seen(logits, logits), TARGET, LABEL)
    assert (torch.autograd.grad(hinge.sum(), images)[0] != 0).any()
