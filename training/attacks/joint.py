"""An attacker who knows everything: answering network, companion and detector at once.

Momentum descent (`training.attacks.search`) on a sum of hinges, one for each condition that an unflagged wrong answer
needs: the answering network answers the target, the guard does not object, the fused statistic stays below its limit. A
condition that is met gives no gradient, and each part's gradient is normalised before they are added, so that none
drowns the others (after Tramer et al. 2020, arXiv 2002.08347; Bryniarski et al. 2021, arXiv 2106.15023). Several target
classes are tried, best guesses of the companion first, and several starting points. Which conditions there are is the
caller's: all of them, the companion's alone, those of a screen, or large margins without a thought of the detector.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from gateway.core.verdict import Fusion
from training.attacks.coarse import searched_defence
from training.attacks.margin import margin
from training.attacks.patch import Kind, Patches, random_patches
from training.attacks.pgd import pgd, random_start
from training.attacks.search import Ball, Combine, Found, Hinges, Painted, Space, descend
from training.defence.graph import DefenceGraph
from training.defence.scores import score_named
from training.util.signatures import Predict, Progress, silent

# (logits, companion's logits, scores (N, S), target (N,)) -> hinges, (N,) each, zero where the condition is met.
Conditions = Callable[[Tensor, Tensor, Tensor, Tensor], list[Tensor]]
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


class Aims(Protocol):
    """Which classes a maker of patches aims at first, and where a patch may lie that aims at one."""

    def order(self, ranked: Tensor) -> Tensor:
        """Classes (N, T), most promising first, as this maker takes them."""
        ...

    def draw(self, target: Tensor) -> Patches:
        """Patches in random colours that aim at `target` (N,)."""
        ...


_ANSWER = 0.5  # margin at which an answer is taken for safe
_GUARD = 0.1  # and an objection for avoided, in logits
_FISHER = 1.0
_SURE = 5.0  # margin of a confident answer
_RANKING_STEPS = 15
_PATCH_RANKING = 16 / 255  # radius at which a patch's targets are ranked
_LEVELS = np.concatenate([np.linspace(0, 0.9, 10), [0.95, 0.98, 0.99, 0.995, 1.0]])


def unflagged(fusion: Fusion, level: float, *, capped: bool = False) -> Conditions:
    """The conditions of a wrong answer with T (`gateway.core.verdict.Fusion`) above `level`; `capped`: `evidence`."""
    limit, objection = fusion.limits(level)
    statistic = evidence(fusion.components, fusion.columns, capped=capped)

    def conditions(logits: Tensor, companion: Tensor, scores: Tensor, target: Tensor) -> list[Tensor]:
        hinges = [says(logits, target), (statistic(scores) - limit + _FISHER).relu()]
        if fusion.guard is None:
            return [*hinges, says(companion, target)]
        values = scores[:, fusion.objecting]
        return [*hinges, unobjected(fusion.guard.score, objection, logits, companion, values, target)]

    return conditions


def unobjected(score: str, limit: float, logits: Tensor, companion: Tensor, values: Tensor, target: Tensor) -> Tensor:
    """Hinge (N,): zero once the `score` that objects to `target`, larger where it objects more, is below `limit`.

    The companion's plain margin (`Score.of_any_label`) is asked of the target from the start. Any other score, with
    `values` (N,), is of the answered label: until that is the target the plain margin replaces a score of the
    companion's.
    """
    asked = score_named(score)
    plain = (_GUARD - limit - margin(companion, target)).relu()
    if asked.of_any_label:
        return plain
    answered, own = logits.argmax(1) == target, (values - limit + _GUARD).relu()
    return torch.where(answered, own, plain) if "companion" in asked.needs and not answered.all() else own


def screened(fusion: Fusion, columns: Sequence[int], threshold: float) -> Conditions:
    """The conditions of a wrong answer that passes the cascade's screen: Fisher's statistic below `threshold`."""
    statistic = evidence(fusion.components, columns)

    def conditions(logits: Tensor, companion: Tensor, scores: Tensor, target: Tensor) -> list[Tensor]:
        return [
            says(logits, target),
            (statistic(scores) - threshold + _FISHER).relu(),
            says(companion, target),
        ]

    return conditions


def companion_says(_logits: Tensor, companion: Tensor, _scores: Tensor, target: Tensor) -> list[Tensor]:
    """The companion alone is attacked."""
    return [says(companion, target)]


def confident(logits: Tensor, companion: Tensor, _scores: Tensor, target: Tensor) -> list[Tensor]:
    """Both networks answer the target by a large margin, whatever the detector reports."""
    return [says(logits, target, _SURE), says(companion, target, _SURE)]


def joint_attack(
    defence: DefenceGraph,
    x: Tensor,
    y: Tensor,
    *,
    eps: float,
    steps: int,
    targets: int,
    conditions: Conditions,
    beaten: Beaten,
    looks: Looks = "all",
    restarts: int = 1,
    untargeted: bool = False,
    combine: Combine = "normalised",
    samples: int = 1,
    jitter: float = 0.0,
    afterwards: Afterwards | None = None,
    order: Tensor | None = None,
    full_precision: bool = False,
    generator: torch.Generator | None = None,
    progress: Progress = silent,
) -> Tensor:
    """Which images fall within `eps` (Linf, of 1), at each false-positive rate: (N, A) bool.

    `beaten(adversarial, y)` judges images as the system does: (N, A), True where the answer is wrong and not flagged at
    the a-th rate, rates ascending (fewer flags first). An image is attacked until it falls at the last one, or
    `targets` other classes (at most all of them) were tried from each of `restarts` starting points: the image itself,
    then random points of the ball. With `untargeted`, each round begins with whatever other class is nearest.

    `looks` is what `conditions` read, so that nothing else is computed: everything; the answering network and its own
    scores; both networks' logits, with one score alone (`Only`) or with no scores; or the companion's alone, given as
    both logits. `afterwards` adds hinges of its own (`training.attacks.neutralised`). With `samples` each step follows
    the mean over that many evaluations, at images moved by uniform noise of up to `jitter`: it smooths what is rough,
    such as a score's own attack. `order` (N, T) gives the targets (`rank_targets` otherwise). The search is in bfloat16
    where the machine has it, unless `full_precision`; successes are what `beaten` returns.
    """
    noise = None if jitter == 0 else (jitter, generator)
    run = _Run(defence, x, y, conditions, beaten, looks, afterwards, full_precision=full_precision, noise=noise)
    if run.won[:, -1].all():
        progress(1, 1)
        return run.won
    if order is None:
        order, nearest = run.ranking(eps, targets, generator)
        run.judge(nearest, torch.arange(len(x), device=x.device))
    aims: list[int | None] = [*([None] if untargeted else []), *range(min(targets, order.shape[1]))]
    passes = [(restart, aim) for restart in range(restarts) for aim in aims]
    for number, (restart, aim) in enumerate(passes):
        start = x if restart == 0 else (x + random_start(x, eps, "linf", generator)).clamp(0, 1)
        run.descend(
            Ball(x, eps),
            start,
            None if aim is None else order[:, aim],
            steps=steps,
            combine=combine,
            samples=samples,
            progress=_part(progress, number * steps, len(passes) * steps),
        )
    progress(len(passes) * steps, len(passes) * steps)
    return run.won


def joint_patch_attack(
    defence: DefenceGraph,
    x: Tensor,
    y: Tensor,
    *,
    side: int,
    kind: Kind = "noisy",
    places: int = 6,
    probe_steps: int = 8,
    steps: int = 60,
    targets: int = 5,
    conditions: Conditions,
    beaten: Beaten,
    looks: Looks = "all",
    combine: Combine = "normalised",
    samples: int = 1,
    afterwards: Afterwards | None = None,
    aims: Aims | None = None,
    full_precision: bool = False,
    generator: torch.Generator | None = None,
    progress: Progress = silent,
) -> Tensor:
    """`joint_attack` with a patch of `side` pixels instead of a ball: (N, A) bool.

    Of `places` random places and colours, each tried for `probe_steps` against the nearest other class, the one whose
    hinges are lowest is worked on for `steps`, for each of `targets` classes in turn. With `aims` the places are those
    that it draws for a class, tried against that class.
    """
    run = _Run(defence, x, y, conditions, beaten, looks, afterwards, full_precision=full_precision)
    if aims is not None:
        everything = defence.network(x[:1]).shape[1]
        order = aims.order(run.ranking(_PATCH_RANKING, everything, generator)[0])[:, :targets]
        total = order.shape[1] * (places * probe_steps + steps)
        for number in range(order.shape[1]):
            target, before = order[:, number], number * (places * probe_steps + steps)
            best = run.best_of(
                partial(aims.draw, target),
                target,
                places=places,
                steps=probe_steps,
                combine=combine,
                samples=samples,
                progress=_part(progress, before, total),
            )
            run.descend(
                Painted(x, best),
                best.colours,
                target,
                steps=steps,
                combine=combine,
                samples=samples,
                progress=_part(progress, before + places * probe_steps, total),
            )
        progress(total, total)
        return run.won
    order, _ = run.ranking(_PATCH_RANKING, targets, generator)
    total = places * probe_steps + order.shape[1] * steps
    best = run.best_of(
        lambda: random_patches(x, side, kind, generator),
        None,
        places=places,
        steps=probe_steps,
        combine=combine,
        samples=samples,
        progress=_part(progress, 0, total),
    )
    for aim in range(order.shape[1]):
        run.descend(
            Painted(x, best),
            best.colours,
            order[:, aim],
            steps=steps,
            combine=combine,
            samples=samples,
            progress=_part(progress, places * probe_steps + aim * steps, total),
        )
    progress(total, total)
    return run.won


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


class _Run:
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

    def best_of(
        self,
        draw: Callable[[], Patches],
        target: Tensor | None,
        *,
        places: int,
        steps: int,
        combine: Combine,
        samples: int,
        progress: Progress,
    ) -> Patches:
        """Of `places` draws, each worked on for `steps`, the patches with the lowest hinges; `ValueError` for none."""
        best: Patches | None = None
        lowest = torch.full((len(self.x),), torch.inf, device=self.x.device)
        for number in range(places):
            patches = draw()
            found = self.descend(
                Painted(self.x, patches),
                patches.colours,
                target,
                steps=steps,
                combine=combine,
                samples=samples,
                progress=_part(progress, number * steps, places * steps),
            )
            patches = patches.painted(found.parameters)
            best = patches if best is None else patches.where(found.total < lowest, best)
            lowest = torch.minimum(lowest, found.total)
        if best is None:
            raise ValueError("places 0: at least one is needed")
        return best

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


def _part(progress: Progress, before: int, total: int) -> Progress:
    """`progress` of a part of `total` steps that begins after `before` of them."""
    return lambda done, _total: progress(before + done, total)


def says(logits: Tensor, target: Tensor, by: float = _ANSWER) -> Tensor:
    """Hinge (N,): zero once `target` (N,) wins by `by` logits."""
    return (by - margin(logits, target)).relu()


def evidence(components: np.ndarray, columns: Sequence[int], *, capped: bool = False) -> Callable[[Tensor], Tensor]:
    """Fisher's statistic (N,) of scores (N, S), differentiable: -2 log p linear between benign quantiles and beyond.

    `capped`: a score beyond all benign ones counts as the largest of them, as it does in the gateway, and is left to
    grow. Where the limit lets one score be off the scale that wins more; elsewhere the slope that it takes away does.
    """
    n = len(components)
    heights = torch.from_numpy(-2 * np.log(1 - _LEVELS * n / (n + 1))).float()
    knots = [torch.from_numpy(np.quantile(components[:, column], _LEVELS)).float() for column in columns]

    def statistic(scores: Tensor) -> Tensor:
        total, high = torch.zeros(len(scores), device=scores.device), heights.to(scores.device)
        for column, knot in zip(columns, knots, strict=True):
            score, at = scores[:, column].contiguous(), knot.to(scores.device)
            right = torch.searchsorted(at, score.detach()).clamp(1, len(at) - 1)
            slope = (high[right] - high[right - 1]) / (at[right] - at[right - 1]).clamp_min(1e-6)
            doubt = (high[right - 1] + slope * (score - at[right - 1])).relu()
            total = total + (doubt.clamp(max=float(high[-1])) if capped else doubt)
        return total

    return statistic
