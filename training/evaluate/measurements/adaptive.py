"""Level 3: an attacker with everything, against every system at once; an image counts at the worst of all attacks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from training.attacks.joint import (
    Afterwards,
    Conditions,
    Looks,
    Only,
    companion_says,
    confident,
    evidence,
    joint_attack,
    rank_targets,
    says,
    screened,
    unflagged,
    unobjected,
)
from training.attacks.margin import margin
from training.attacks.matching import match_features, nearest_other, pooled_features
from training.attacks.pgd import pgd
from training.defence.scores import SCORES, score_named
from training.defence.scores.score import Score
from training.evaluate.harness.bench import Bench
from training.evaluate.harness.found import Figure, Found
from training.evaluate.harness.store import Arrays
from training.evaluate.measurements.systems import ALONE, DOUBTS, Systems
from training.recipes.evaluation import ALPHAS, RATES
from training.util.module_modes import frozen
from training.util.statistics import interval

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
    """Every attack but the simple ones: the companion alone, confident without a thought of the detector, and each
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
        told = judge.fusion.guard
        near = None if told is None else _near(score_named(told.score), judge.fusion.limits(level)[1])
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
    told = -margin(companion, target) if score_named(score).of_any_label else scores[:, 0]
    return [says(logits, target, SAFE), unobjected(score, limit, logits, companion, told, target)]


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

    The simple attacks come first, unless `only` names stages or this goes on from `before`, rows of earlier attacks on
    the same images. `kind` is what the rows are kept under. More than one of `samples`: gradients are means over as
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
    """All columns, and at the end the one that says when an image needs no more work."""
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


def adaptive(bench: Bench, *, eps: int) -> Found:
    """Share of test images answered wrong and not flagged, by system and rate, and what each attack adds.

    `half` is the companion's error at half the radius, to compare with: a detector that is robust at eps makes a
    classifier (perhaps one that cannot be computed) that is robust at eps / 2 (Tramer 2022, arXiv 2107.11630), so that
    figures far below it would claim more than the companion's kind of training gives.
    """
    settings, key = bench.settings, f"eps_{eps}"
    test = bench.first(settings.adaptive)
    rows, columns = suite(bench, eps=eps, count=settings.adaptive, steps=settings.adaptive_steps)
    union = union_of(rows, columns)
    row: dict[str, Any] = {"n": len(test)}

    def tell(name: str, won: np.ndarray) -> None:
        row.update({name: float(won.mean()), f"{name}_interval": interval(won, test.group)})

    for prefix, system in (("alpha", "served"), ("cascade", "cascade")):
        for alpha in ALPHAS:
            if (won := union.get(f"{system}@{alpha:g}")) is not None:
                tell(f"{prefix}_{alpha:g}", won)
    outcomes, figures = {}, {}
    for alpha in ALPHAS:
        figure = f"joint_{eps}" if alpha == max(ALPHAS) else f"joint_{eps}_{alpha:g}"
        outcomes[figure] = union[f"served@{alpha:g}"]
        figures[figure] = Figure(figure, at=("adaptive", key, f"alpha_{alpha:g}"))
    if ALONE in union:
        half, _ = suite(bench, eps=eps / 2, count=settings.adaptive, steps=settings.adaptive_steps, only=[ALONE])
        tell("companion", union[ALONE])
        tell("half", union_of(half, columns)[ALONE])
        row |= {f"excess_{alpha:g}": row[f"alpha_{alpha:g}"] - row["companion"] for alpha in ALPHAS}
        outcomes[f"companion_error_{eps}"] = union[ALONE]
        figures[f"joint_excess_{eps}"] = Figure(
            f"joint_{eps}", minus=f"companion_error_{eps}", at=("adaptive", key, f"excess_{max(ALPHAS):g}")
        )
    effort = {name: getattr(settings, f"adaptive_{name}") for name in ("steps", "targets", "restarts")}
    simple, joint = (
        {column: float(won.mean()) for column, won in union_of(rows, columns, names).items()}
        for names in (SIMPLE, [name for name in rows if name not in SIMPLE])
    )
    section = {
        "adaptive": {"n": len(test)} | effort | {key: row},
        "systems": {key: by_system(union, test.group)},
        "stages": {key: _added(rows, columns.index(SERVED))},
    }
    return Found(section, figures, outcomes, {"simple": simple, "joint": joint})


def by_system(union: dict[str, np.ndarray], group: np.ndarray) -> dict[str, dict[str, Any]]:
    """{system: {fpr_<rate>: share, fpr_<rate>_interval}}; systems without a rate have the same figure at each."""
    table: dict[str, dict[str, Any]] = {}
    for column, won in union.items():
        system, _, rate = column.partition("@")
        if system in {"served", "cascade", "guard", DOUBTS}:
            continue
        for each in [rate] if rate else [f"{r:g}" for r in RATES]:
            row = table.setdefault(system, {})
            row |= {f"fpr_{each}": float(won.mean()), f"fpr_{each}_interval": interval(won, group)}
    return table


def _added(rows: Arrays, column: int) -> dict[str, int]:
    """How many images each attack in turn was the first to win, in that column."""
    so_far, counts = np.zeros(len(next(iter(rows.values()))), bool), {}
    for name, won in rows.items():
        counts[name] = int((won[:, column] & ~so_far).sum())
        so_far |= won[:, column]
    return counts


def doubled(bench: Bench) -> Found:
    """The joint attack at 8/255 with twice the steps, and the companion's error under them, on the same images."""
    section: dict[str, Any] = {"steps": (steps := bench.settings.adaptive_steps)}
    for name, times in (("once", 1), ("twice", 2)):
        section |= _served(bench, name, (ALONE, GUARD_STAGE, JOINT), steps=times * steps)
    return Found(section)


def smoothed(bench: Bench) -> Found:
    """The joint attacks at 8/255 with gradients averaged over noise, on the images that stood without."""
    settings, systems = bench.settings, Systems(bench)
    effort: dict[str, Any] = {"eps": 8, "count": settings.doubled, "steps": settings.adaptive_steps}
    rows, columns = suite(bench, **effort)
    plan = [stage for stage in stages(systems) if stage.name == JOINT]
    plan += [stage for stage in stricter(systems) if stage.name.startswith(JOINT)]
    near = None if bench.defence.companion is None else DOUBTS
    plan = [replace(stage, name=f"{stage.name}, averaged", given=near) for stage in plan]
    more = carry_out(bench, systems, plan, "adaptive-smoothed", samples=SAMPLES, before=rows, **effort)
    section: dict[str, Any] = {"samples": SAMPLES, "jitter": JITTER, "n": len(rows[JOINT])}
    for name, won in (("once", union_of(rows, columns)), ("averaged", union_of(rows | more, columns))):
        section[name] = {f"alpha_{alpha:g}": float(won[f"served@{alpha:g}"].mean()) for alpha in ALPHAS}
    return Found(section)


def _served(bench: Bench, name: str, only: Sequence[str], *, steps: int) -> dict[str, Any]:
    """{n, `name`: shares won on the system as served and, where that is attacked, on the companion}."""
    won = union_of(*suite(bench, eps=8, count=bench.settings.doubled, steps=steps, only=only))
    told = {"served": float(won[SERVED].mean())}
    if ALONE in only and ALONE in won:
        told["companion"] = float(won[ALONE].mean())
    return {"n": len(won[SERVED]), name: told}
