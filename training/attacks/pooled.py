"""An attacker who knows the pool (`gateway.core.pool`): not flagged, the pool on his side."""

from __future__ import annotations

import torch
from torch import Tensor

from gateway.core.rules import PoolRule
from gateway.core.small_field import TEMPERATURE
from gateway.core.verdict import Fusion
from training.attacks.conditions import Conditions, unflagged
from training.attacks.joint_run import Afterwards, Seen
from training.defence.graph import DefenceGraph
from training.models.small_field import SmallField

_CLEARLY = 0.02  # of probability


def quiet(fusion: Fusion, level: float) -> Conditions:
    """The conditions of an input that is not flagged at `level`, whatever the answering network says."""
    both = unflagged(fusion, level)

    def conditions(logits: Tensor, companion: Tensor, scores: Tensor, target: Tensor) -> list[Tensor]:
        return both(logits, companion, scores, target)[1:]

    return conditions


def overruled(rule: PoolRule, field: SmallField | None) -> Afterwards:
    """The pool answers the target; `field` is the network of small fields, where the rule asks it."""

    def afterwards(_defence: DefenceGraph, images: Tensor, seen: Seen, target: Tensor, _label: Tensor) -> list[Tensor]:
        parts = [(rule.answering, seen.logits), (rule.companion, seen.companion)]
        if field is not None and rule.small_field is not None:
            parts.append((rule.small_field, field.cells(images).float().sum((2, 3)) / TEMPERATURE))
        total = sum(weight for weight, _ in parts)
        pool = torch.stack([weight / total * logits.softmax(1) for weight, logits in parts]).sum(0)
        short = _behind(pool, target) + rule.threshold + _CLEARLY
        # The gradient is that of logarithms, which do not vanish where the networks are sure.
        log = _behind(pool.clamp_min(1e-12).log(), target)
        return [torch.where(short > 0, short.detach() + log - log.detach(), torch.zeros_like(short))]

    return afterwards


def _behind(values: Tensor, target: Tensor) -> Tensor:
    """By how much (N,) the best other entry of `values` (N, K) leads that of `target` (N,)."""
    others = values.scatter(1, target[:, None], -torch.inf)
    return others.amax(1) - values.gather(1, target[:, None])[:, 0]
