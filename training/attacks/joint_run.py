"""The state of an attack on everything at once, and what it looks at (`training.attacks.joint`)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from training.attacks.coarse import searched_defence
from training.attacks.conditions import Conditions
from training.attacks.pgd import pgd, random_start
from training.attacks.search import Combine, Found, Hinges, Space, descend
from training.defence.graph import DefenceGraph
from training.defence.scores import score_named
from training.util.signatures import Predict, Progress

Beaten = Callable[[Tensor, Tensor], Tensor]


class Only(NamedTuple):
    """Only this score is computed."""

    score: str


Looks = Literal["all", "alone", "networks", "companion"] | Only


class Seen(NamedTuple):
    """The defence's outputs for images: logits and taps of the answering network, companion's logits, scores (M, S)."""

    logits: Tensor
    taps: dict[str, Tensor]
    companion: Tensor
    scores: Tensor


# (defence, images, what was seen of them, target, label) -> further hinges, such as those of the neutralised image.
Afterwards = Callable[[DefenceGraph, Tensor, Seen, Tensor, Tensor], list[Tensor]]

_RANKING_STEPS = 15


class Run:
    """The state of an attack on `x`: `won` (N, A)."""

    def __init__(
        self,
        defence: DefenceGraph,
        x: Tensor,
        y: Tensor,
        conditions: Conditions,
        beaten: Beaten,
        looks: Looks,
        afterwards: Afterwards | None,
        *,
        full_precision: bool,
        noise: tuple[float, torch.Generator | None] | None = None,
    ) -> None:
        self.noise = noise
        self.x, self.y, self.conditions, self.beaten, self.looks = x, y, conditions, beaten, looks
        self.afterwards = afterwards
        self.won = beaten(x, y).to(x.device).clone()
        self.defence = defence if full_precision else searched_defence(defence)
        self.second: Predict = self.defence.network if self.defence.companion is None else self.defence.companion

    def ranking(self, eps: float, targets: int, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
        return rank_targets(self.second, self.x, self.y, eps=eps, targets=targets, generator=generator)

    def judge(self, images: Tensor, rows: Tensor) -> Tensor:
        """Record what the images of `rows` win; returns which rows need no more work."""
        self.won[rows] |= self.beaten(images, self.y[rows]).to(rows.device)
        return self.won[rows, -1]

    def descend(
        self,
        space: Space,
        start: Tensor,
        target: Tensor | None,
        *,
        steps: int,
        combine: Combine,
        samples: int,
        progress: Progress,
    ) -> Found:
        """One search, of the images that still stand, from `start` (N, ...) towards `target` (N,)."""
        left = torch.flatten(torch.nonzero(~self.won[:, -1]))
        found = Found(start.clone(), torch.full((len(start),), torch.inf, device=start.device))
        if len(left) == 0:
            return found
        part = descend(
            _Rows(space, left),
            start[left],
            self._hinges(left, target),
            lambda images, rows: self.judge(images, left[rows]),
            steps=steps,
            combine=combine,
            samples=samples,
            progress=progress,
        )
        found.parameters[left], found.total[left] = part.parameters, part.total
        return found

    def _hinges(self, left: Tensor, target: Tensor | None) -> Hinges:
        def hinges(images: Tensor, rows: Tensor) -> list[Tensor]:
            if self.noise is not None:
                images = (images + random_start(images, self.noise[0], "linf", self.noise[1])).clamp(0, 1)
            seen, label = self._look(images), self.y[left[rows]]
            aim = _nearest(seen, label) if target is None else target[left[rows]]
            found = self.conditions(seen.logits, seen.companion, seen.scores, aim)
            if self.afterwards is not None:
                found = [*found, *self.afterwards(self.defence, images, seen, aim, label)]
            return found

        return hinges

    def _look(self, images: Tensor) -> Seen:
        if self.looks == "all":
            return look(self.defence, images)
        if self.looks == "alone":
            logits, taps = self.defence.network.taps(images)
            return Seen(logits, taps, logits, self.defence.detector_scores(images, logits, taps, None)[0])
        second = self.second(images)
        nothing = second.new_zeros(len(images), 0)
        if self.looks == "companion" or (self.defence.companion is None and self.looks == "networks"):
            return Seen(second, {}, second, nothing)
        if isinstance(self.looks, Only):
            logits, taps = self.defence.network.taps(images)
            context = self.defence.context(images, logits, taps, second)
            return Seen(logits, taps, second, score_named(self.looks.score)(context)[:, None])
        return Seen(self.defence.network(images), {}, second, nothing)


def rank_targets(
    predict: Predict, x: Tensor, y: Tensor, *, eps: float, targets: int, generator: torch.Generator | None = None
) -> tuple[Tensor, Tensor]:
    """Classes to aim at (N, T), most promising first, and an untargeted adversarial image of each (N, C, H, W).

    A class counts by the better of its ranks in the logits at `x` and at the untargeted adversarial image; `y` is none.
    """
    nearest = pgd(predict, x, y, eps=eps, steps=_RANKING_STEPS, generator=generator)
    with torch.no_grad():
        logits = torch.stack([predict(x).float(), predict(nearest).float()])
    ranks = logits.scatter(2, y[None, :, None].expand(2, -1, 1), -torch.inf).argsort(2, descending=True).argsort(2)
    # In a tie the adversarial image goes first.
    key = 2 * ranks.amin(0) + (ranks[1] > ranks[0])
    key.scatter_(1, y[:, None], 4 * logits.shape[2])
    return key.argsort(stable=True, dim=1)[:, : min(targets, logits.shape[2] - 1)], nearest


def look(defence: DefenceGraph, images: Tensor) -> Seen:
    """Everything that conditions read of `images`; without a companion the answering network stands in for it."""
    logits, taps = defence.network.taps(images)
    companion = None if defence.companion is None else defence.companion(images)
    scores, _ = defence.detector_scores(images, logits, taps, companion)
    return Seen(logits, taps, logits if companion is None else companion, scores)


@dataclass(frozen=True)
class _Rows:
    """A space of which only the images `left` (M,) are searched."""

    space: Space
    left: Tensor

    def image(self, parameters: Tensor, rows: Tensor) -> Tensor:
        return self.space.image(parameters, self.left[rows])

    def move(self, parameters: Tensor, direction: Tensor, rows: Tensor, share: float) -> Tensor:
        return self.space.move(parameters, direction, self.left[rows], share)


def _nearest(seen: Seen, label: Tensor) -> Tensor:
    """The class other than `label` that both networks together are nearest to."""
    logits = (seen.logits + seen.companion).detach()
    return logits.scatter(1, label[:, None], -torch.inf).argmax(1)


def part_of(progress: Progress, before: int, total: int) -> Progress:
    """`progress` of a part of `total` steps that begins after `before` of them."""
    return lambda done, _total: progress(before + done, total)
