"""Level 4: an attacker with everything, against every system at once; an image counts at the worst of all attacks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from training.attacks.conditions import (
    Conditions,
    companion_says,
    confident,
    evidence,
    says,
    screened,
    unflagged,
    unobjected,
)
from training.attacks.joint import joint_attack
from training.attacks.joint_run import Afterwards, Looks, Only, rank_targets
from training.attacks.margin import margin
from training.attacks.matching import match_features, nearest_other, pooled_features
from training.attacks.pgd import pgd
from training.defence.scores import SCORES, score_named
from training.defence.scores.score import Score
from training.evaluate.harness.bench import Bench
from training.evaluate.harness.store import Arrays
from training.evaluate.harness.systems import ALONE, DOUBTS, Systems
from training.recipes.evaluation import ALPHAS, RATES
from training.util.module_modes import frozen

CHUNK = 32
SAFE, SURE = 0.5, 10.0  # margins, in logits, at which an answer is taken for safe, and for confident
SERVED, JOINT = f"served@{max(ALPHAS):g}", "joint, as served"
GUARDED, GUARD_STAGE = "guard@served", f"guard, {max(ALPHAS):g}"
SIMPLE = ("PGD on the answering network", "PGD on the companion", "feature matching")
GUIDES = 512
SAMPLES, JITTER = 4, 2 / 255  # of gradients that are averaged, to smooth a score that attacks by itself


class Judges(Protocol):
    """Systems that are attacked at once: a column each, and which images beat it, (N, R) bool."""

    @property
    def columns(self) -> list[str]: ...

    def judged(self, adversarial: Tensor, label: Tensor) -> np.ndarray: ...


@dataclass(frozen=True)
class Stage:
    """One attack: what its hinges ask for and read, and the column at which it stops working on an image.

    `afterwards` adds hinges that ask for more forwards. Only images that have beaten the column `given` are tried:
    where the companion has to be near to the target, an image on which no attack brought it near to erring is not worth
    the work.
    """

    name: str
    conditions: Conditions
    until: str
    looks: Looks = "all"
    given: str | None = None
    afterwards: Afterwards | None = None


def stages(systems: Systems) -> list[Stage]:
    """Every attack but the simple ones: the companion alone, confident without regard to the detector, and each
    system at the limits of each rate, the strictest first.
    """
    bench = systems.bench
    judge = bench.pipeline.judge
    found = [Stage("answering network alone, confident", _sure, f"max_softmax@{RATES[-1]:g}", "networks")]
    if bench.defence.companion is not None:
        found.append(Stage(ALONE, companion_says, ALONE, "companion"))
        found.append(Stage("confident", confident, f"all@{RATES[-1]:g}", "networks", DOUBTS))
    for rate in reversed(RATES):
        if systems.calm:
            found.append(Stage(f"detector, {rate:g}", _calm(systems, rate), f"detector@{rate:g}", "alone"))
        for score, threshold in _cut(systems, rate):
            if score.of_any_label:
                found.append(_alone(score, rate, threshold, _near(score, threshold)))
        found += _guarded(systems, rate)
    found.append(_joint(systems, JOINT, judge.level(max(ALPHAS)), SERVED, GUARDED))
    if bench.pipeline.can_screen and (cascade := judge.calibration.cascade) is not None:
        columns = [bench.bundle.manifest.scores.index(name) for name in cascade.scores]
        through = screened(judge.fusion, columns, cascade.threshold)
        found.append(Stage("joint, through the screen", through, f"cascade@{max(ALPHAS):g}", given=DOUBTS))
    return found


def stricter(systems: Systems) -> list[Stage]:
    """What is tried on images that stand where few are flagged: there the limit of the fused scores is wide.

    The systems as served at the smaller levels, which no stage of `stages` aims at, and `all` at the least rate.
    """
    judge = systems.bench.pipeline.judge
    rate, guard = RATES[0], f"guard@{RATES[0]:g}" if systems.guards else None
    least = unflagged(judge.fusion, -systems.thresholds["all", rate], capped=True)
    found = [Stage(f"joint, {rate:g}, capped", least, f"all@{rate:g}", given=guard)]
    for alpha in sorted(ALPHAS)[:-1]:
        level = judge.level(alpha)
        objecting = judge.fusion.guard
        near = None if objecting is None else _near(score_named(objecting.score), judge.fusion.limits(level)[1])
        conditions = unflagged(judge.fusion, level, capped=True)
        found.append(Stage(f"{JOINT}, {alpha:g}", conditions, f"served@{alpha:g}", given=near))
    return found


def _guarded(systems: Systems, rate: float) -> list[Stage]:
    """The guard alone within `all`, scores that are judged alone and only known of the answer, everything; at one rate.

    What the guard objects to however it is attacked need not be tried against more.
    """
    fusion, column, found = systems.bench.pipeline.judge.fusion, f"guard@{rate:g}", list[Stage]()
    guard = None if fusion.guard is None else score_named(fusion.guard.score)
    limit = systems.guards.get(f"{rate:g}")
    if guard is not None and limit is not None:
        passes = partial(_unobjected, guard.name, limit)
        found.append(Stage(f"guard, {rate:g}", passes, column, _looks(guard), _near(guard, limit)))
    for score, threshold in _cut(systems, rate):
        if not score.of_any_label:
            guarded = score is guard and limit is not None and limit >= threshold
            found.append(_alone(score, rate, threshold, column if guarded else _near(score, threshold)))
    found.append(_joint(systems, f"joint, {rate:g}", -systems.thresholds["all", rate], f"all@{rate:g}", column))
    return found


def _cut(systems: Systems, rate: float) -> Iterator[tuple[Score, float]]:
    """The scores that are systems of their own, with what is above which they flag at that rate."""
    for score in SCORES.values():
        threshold = None if score.system is None else systems.thresholds.get((score.system, rate))
        if threshold is not None:
            yield score, threshold


def _alone(score: Score, rate: float, threshold: float, given: str | None) -> Stage:
    """The score alone, as a system of its own that flags what is above `threshold`."""
    passes, system = partial(_unobjected, score.name, threshold), score.system
    return Stage(f"{system}, {rate:g}", passes, f"{system}@{rate:g}", _looks(score), given)


def _looks(score: Score) -> Looks:
    """What has to be computed of the score: a companion's margin is that of the networks' logits."""
    return "networks" if score.of_any_label else Only(score.name)


def _near(score: Score, limit: float) -> str | None:
    """The column that an image has to have beaten where a companion's doubt (`score`) above `limit` is flagged."""
    return DOUBTS if "companion" in score.needs and limit <= SAFE else None


def _joint(systems: Systems, name: str, level: float, until: str, guard: str) -> Stage:
    fusion = systems.bench.pipeline.judge.fusion
    return Stage(name, unflagged(fusion, level), until, given=guard if fusion.guard is not None else None)


def _sure(logits: Tensor, _companion: Tensor, _scores: Tensor, target: Tensor) -> list[Tensor]:
    return [says(logits, target, SURE)]


def _unobjected(
    score: str, limit: float, logits: Tensor, companion: Tensor, scores: Tensor, target: Tensor
) -> list[Tensor]:
    """The answer is the target, and the `score` of it is not above `limit`; `scores` has that one alone (`_looks`)."""
    values = -margin(companion, target) if score_named(score).of_any_label else scores[:, 0]
    return [says(logits, target, SAFE), unobjected(score, limit, logits, companion, values, target)]


def _calm(systems: Systems, rate: float) -> Conditions:
    statistic = evidence(systems.bench.pipeline.judge.fusion.components, systems.calm)
    limit = systems.thresholds["detector", rate]

    def conditions(logits: Tensor, _companion: Tensor, scores: Tensor, target: Tensor) -> list[Tensor]:
        return [says(logits, target, SAFE), (statistic(scores) - limit + 1).relu()]

    return conditions


def suite(bench: Bench, *, eps: float, count: int, steps: int, only: Sequence[str] = ()) -> tuple[Arrays, list[str]]:
    """Which of the first `count` test images beat which column by which attack: {attack: (n, R)}, and the columns.

    `only` names the stages to run, without the simple attacks and without those of `stricter`.
    """
    systems = Systems(bench)
    plan = [stage for stage in stages(systems) if not only or stage.name in only]
    rows = carry_out(bench, systems, plan, "adaptive", eps=eps, count=count, steps=steps, only=only)
    if only:
        return rows, systems.columns
    more = carry_out(
        bench, systems, stricter(systems), "adaptive-stricter", eps=eps, count=count, steps=steps, before=rows
    )
    return rows | more, systems.columns


def carry_out(
    bench: Bench,
    systems: Judges,
    plan: Sequence[Stage],
    kind: str,
    *,
    eps: float,
    count: int,
    steps: int,
    only: Sequence[str] = (),
    samples: int = 1,
    before: Arrays | None = None,
) -> Arrays:
    """The stages of `plan` one after another on the first `count` test images: {attack: (n, R) bool}.

    The simple attacks come first, unless `only` names stages or `before` has rows of earlier attacks on the same
    images. `kind` is what the rows are kept under. More than one of `samples`: gradients are means over as
    many images within `JITTER`.
    """
    test, columns = bench.first(count), systems.columns
    targets, restarts = bench.settings.adaptive_targets, bench.settings.adaptive_restarts
    name = f"{kind} attacks at {eps:g}/255"

    def make(start: int, stop: int, generator: torch.Generator) -> Arrays:
        part = test.take(np.arange(start, stop))
        x, y = bench.pixels(part.x), bench.targets(part.y)
        won: Arrays = {}
        earlier = {name: each[start:stop] for name, each in (before or {}).items()}
        with frozen(bench.defence):
            if not only and before is None:
                won |= {simple: systems.judged(images, y) for simple, images in _simple(bench, x, y, eps, generator)}
            second = bench.defence.companion or bench.defence.network
            order, _ = rank_targets(second, x, y, eps=eps / 255, targets=targets)
            for stage in plan:
                # What a simple attack has won is tried again: the joint attacks have to win it themselves.
                known = earlier | won
                todo = ~_any(known, stage.until, columns, [name for name in known if name not in SIMPLE], len(part))
                if stage.given is not None and (not only or stage.given == GUARDED):
                    todo &= _any(known, stage.given, columns, list(known), len(part))
                won[stage.name] = np.zeros((len(part), len(columns)), bool)
                if todo.any():
                    chosen = torch.from_numpy(np.flatnonzero(todo)).to(x.device)
                    won[stage.name][todo] = (
                        joint_attack(
                            bench.defence,
                            x[chosen],
                            y[chosen],
                            eps=eps / 255,
                            steps=steps,
                            targets=targets,
                            conditions=stage.conditions,
                            beaten=_judge(systems, stage.until),
                            looks=stage.looks,
                            restarts=restarts,
                            order=order[chosen],
                            afterwards=stage.afterwards,
                            generator=generator,
                            samples=samples,
                            jitter=JITTER if samples > 1 else 0.0,
                            progress=partial(bench.progress, f"{name}, images {start}-{stop}: {stage.name}"),
                        )[:, :-1]
                        .cpu()
                        .numpy()
                    )
        return won

    depends: dict[str, Any] = {"steps": steps, "targets": targets, "restarts": restarts, "only": sorted(only)}
    depends |= {"stages": [stage.name for stage in plan], "columns": columns}
    if samples > 1:
        depends |= {"samples": samples, "jitter": JITTER}
    if before is not None:
        depends["after"] = list(before)
    return bench.rows(name, f"{kind}-{eps:g}", depends, len(test), CHUNK, make, served=True)


def _any(won: Arrays, column: str, columns: Sequence[str], names: Sequence[str], count: int) -> np.ndarray:
    """Which images (count,) any of the attacks `names` wins, in one column."""
    parts = [won[name][:, columns.index(column)] for name in names]
    return np.any(parts, axis=0) if parts else np.zeros(count, bool)


def _judge(systems: Judges, until: str) -> Callable[[Tensor, Tensor], Tensor]:
    """All columns, and at the end the one that states when an image needs no more work."""
    last = systems.columns.index(until)

    def beaten(adversarial: Tensor, label: Tensor) -> Tensor:
        found = systems.judged(adversarial, label)
        return torch.from_numpy(np.concatenate([found, found[:, [last]]], axis=1))

    return beaten


def _simple(bench: Bench, x: Tensor, y: Tensor, eps: float, generator: torch.Generator) -> Iterator[tuple[str, Tensor]]:
    """Attacks that know less, or ask for less: `SIMPLE` by name, with their images."""
    network, select = bench.defence.network, bench.data.select
    for name, attacked in zip(SIMPLE, (network, bench.defence.companion), strict=False):
        if attacked is not None:
            yield name, pgd(attacked, x, y, eps=eps / 255, steps=bench.settings.steps, generator=generator)
    with torch.no_grad():
        guides, own = (pooled_features(network, images) for images in (bench.pixels(select.x[:GUIDES]), x))
    target = nearest_other(own, guides, bench.targets(select.y[:GUIDES]), y)
    yield SIMPLE[2], match_features(network, x, target, eps=eps / 255)


def union_of(rows: Arrays, columns: Sequence[str], names: Sequence[str] | None = None) -> dict[str, np.ndarray]:
    """By column, what any of the attacks `names` (all of them) wins, (n,)."""
    won = np.any([each for name, each in rows.items() if names is None or name in names], axis=0)
    return dict(zip(columns, won.T, strict=True))
