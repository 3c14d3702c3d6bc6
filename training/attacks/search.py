"""The search under all adaptive attacks: momentum descent on hinges, one for each condition of a success.

A hinge is zero where its condition is met. How the hinges' gradients are combined is a choice (`Combine`); what counts
is what the judge returns for the images found, in full precision.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

from training.attacks.patch import Patches
from training.attacks.pgd import project
from training.util.signatures import Progress, silent

Combine = Literal["normalised", "sum", "selective", "orthogonal"]
# Images (M, C, H, W) of the rows (M,) -> hinges, (M,) each; differentiable in the images.
Hinges = Callable[[Tensor, Tensor], list[Tensor]]
# Images and their rows -> which rows need no more work, (M,) bool.
Judge = Callable[[Tensor, Tensor], Tensor]

_LOOK = 5  # steps between two judgements
_DECAY = 0.75


class Space(Protocol):
    """What an attacker may change: parameters (N, ...), the images that they make, and a signed step."""

    def image(self, parameters: Tensor, rows: Tensor) -> Tensor: ...

    def move(self, parameters: Tensor, direction: Tensor, rows: Tensor, share: float) -> Tensor:
        """A step against the sign of `direction`, `share` of the longest one."""
        ...


@dataclass(frozen=True)
class Ball:
    """The Linf ball of `eps` around `x` (N, C, H, W): the parameters are the images."""

    x: Tensor
    eps: float

    def image(self, parameters: Tensor, rows: Tensor) -> Tensor:  # noqa: ARG002
        return parameters

    def move(self, parameters: Tensor, direction: Tensor, rows: Tensor, share: float) -> Tensor:
        return project(parameters - 0.5 * self.eps * share * direction.sign(), self.x[rows], self.eps, "linf")


@dataclass(frozen=True)
class Painted:
    """Patches at fixed places on `x` (N, C, H, W): the parameters are their colours."""

    x: Tensor
    patches: Patches
    step: float = 0.1

    def image(self, parameters: Tensor, rows: Tensor) -> Tensor:
        return self.patches.take(rows).painted(parameters).on(self.x[rows])

    def move(self, parameters: Tensor, direction: Tensor, rows: Tensor, share: float) -> Tensor:  # noqa: ARG002
        return (parameters - self.step * share * direction.sign()).clamp(0, 1)


@dataclass(frozen=True)
class Found:
    """The parameters of the smallest sum of hinges by row, (N, ...), and that sum (N,)."""

    parameters: Tensor
    total: Tensor


def descend(
    space: Space,
    parameters: Tensor,
    hinges: Hinges,
    judge: Judge,
    *,
    steps: int,
    combine: Combine = "normalised",
    samples: int = 1,
    progress: Progress = silent,
) -> Found:
    """Lower the hinges from `parameters` (N, ...), every row until the judge accepts it.

    Every few steps the best image since the last time is judged, if its hinges are lower than those of any image judged
    so far; rows that need no more work are dropped. `samples` evaluations of the hinges are averaged at each step, for
    defences that are random (EOT, Athalye et al. 2018, arXiv 1707.07397).
    """
    rows = torch.arange(len(parameters), device=parameters.device)
    found = Found(parameters.clone(), torch.full((len(rows),), torch.inf, device=parameters.device))
    judged = found.total.clone()
    momentum, combiner = torch.zeros_like(parameters), _Combiner(combine)
    for step in range(steps + 1):
        total, direction = _slope(space, parameters, rows, hinges, combiner, samples)
        better = total < found.total[rows]
        found.parameters[rows[better]], found.total[rows[better]] = parameters[better], total[better]
        if step % _LOOK == _LOOK - 1 or step == steps:
            best = found.total[rows]
            suspects = (best < judged[rows]) | (best == 0)
            judged[rows[suspects]] = best[suspects]
            done = torch.zeros_like(suspects)
            if suspects.any():
                done[suspects] = judge(
                    space.image(found.parameters[rows[suspects]], rows[suspects]).detach(), rows[suspects]
                )
            progress(min(step + 1, steps), steps)
            stay = ~done
            rows, parameters, momentum, direction = rows[stay], parameters[stay], momentum[stay], direction[stay]
            combiner.keep(stay)
            if len(rows) == 0 or step == steps:
                break
            # A row that met every condition and was not let through may meet them better elsewhere.
            found.total[rows[found.total[rows] == 0]] = torch.inf
        momentum = _DECAY * momentum + direction
        parameters = space.move(parameters, momentum, rows, (1 + math.cos(math.pi * step / steps)) / 2)
    return found


def _slope(
    space: Space, parameters: Tensor, rows: Tensor, hinges: Hinges, combiner: _Combiner, samples: int
) -> tuple[Tensor, Tensor]:
    """Sum of the hinges (M,) and the combined direction of their gradients, means over `samples`."""
    total, direction = torch.zeros(len(rows), device=rows.device), torch.zeros_like(parameters)
    for _ in range(samples):
        leaf = parameters.detach().requires_grad_(True)
        values = hinges(space.image(leaf, rows), rows)
        total = total + torch.stack([value.detach() for value in values]).sum(0) / samples
        direction = direction + combiner(values, leaf) / samples
    return total, direction


class _Combiner:
    """From hinges to one direction by row.

    `normalised`: each gradient has unit length, so that none drowns the others. `sum`: as they are. `selective`: only
    the first hinge that is not met. `orthogonal`: normalised, without the part that would undo a condition which is met
    (both after Bryniarski et al. 2021, arXiv 2106.15023; a met hinge is remembered by its last gradient).
    """

    def __init__(self, rule: Combine) -> None:
        self.rule = rule
        self.last: dict[int, Tensor] = {}

    def keep(self, stay: Tensor) -> None:
        self.last = {i: gradient[stay] for i, gradient in self.last.items()}

    def __call__(self, hinges: list[Tensor], leaf: Tensor) -> Tensor:
        if self.rule == "sum":
            return _gradient(torch.stack(hinges).sum(), leaf, keep=False)
        if self.rule == "selective":
            unmet = torch.stack([hinge.detach() > 0 for hinge in hinges])
            first = unmet & (unmet.cumsum(0) == 1)
            return _unit(_gradient((torch.stack(hinges) * first).sum(), leaf, keep=False))
        open_ = [i for i, hinge in enumerate(hinges) if (hinge.detach() > 0).any()]
        units = {i: _unit(_gradient(hinges[i].sum(), leaf, keep=i != open_[-1])) for i in open_}
        total = torch.stack(list(units.values())).sum(0) if units else torch.zeros_like(leaf)
        if self.rule == "orthogonal":
            for i, hinge in enumerate(hinges):
                met = _wide(hinge.detach() <= 0, leaf)
                if i in self.last:
                    along = (total * self.last[i]).flatten(1).sum(1)
                    total = torch.where(met, total - _wide(along, leaf) * self.last[i], total)
                if i in units:
                    self.last[i] = torch.where(met, self.last.get(i, torch.zeros_like(leaf)), units[i])
        return total


def _gradient(value: Tensor, leaf: Tensor, *, keep: bool) -> Tensor:
    if not value.requires_grad:
        return torch.zeros_like(leaf)
    (gradient,) = torch.autograd.grad(value, leaf, retain_graph=keep, allow_unused=True)
    return torch.zeros_like(leaf) if gradient is None else gradient


def _unit(gradient: Tensor) -> Tensor:
    return gradient / _wide(gradient.flatten(1).norm(dim=1).clamp_min(1e-12), gradient)


def _wide(column: Tensor, like: Tensor) -> Tensor:
    return column.view(-1, *[1] * (like.dim() - 1))
