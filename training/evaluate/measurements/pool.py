"""The pool that answers (`gateway.core.pool`): what it costs benign images, what it answers rightly of attacks, and
whether an attacker who knows it gains by it.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gateway.core.decision import Decision
from gateway.core.loading import Bundle
from gateway.core.pipeline import Pipeline
from gateway.core.pool import may_overrule
from gateway.core.rules import PoolRule
from training.attacks.conditions import Conditions, unflagged
from training.attacks.joint import joint_attack
from training.attacks.joint_run import Afterwards
from training.attacks.listed import ATTACKS
from training.attacks.pooled import overruled, quiet
from training.bundling.small_field import TENSORS, load_small_field
from training.data.corruptions import CHANGES, NOISES, changed
from training.evaluate.harness.attacked import attacked, flags
from training.evaluate.harness.bench import Bench, as_images
from training.evaluate.harness.found import Figure, Found
from training.evaluate.harness.section import Effort, Interval, RangedByAlpha, Section
from training.evaluate.harness.shown import Body, Table, ranged
from training.evaluate.harness.store import Arrays
from training.evaluate.harness.unit import Place, Unit
from training.evaluate.measurements.shifts import shift_title
from training.evaluate.measurements.votes import FAMILIES as VOTED
from training.recipes.evaluation import ALPHAS
from training.served.answers import serve
from training.util.module_modes import frozen
from training.util.statistics import interval, share

CHUNK, ADAPTIVE_CHUNK = 128, 16
FAMILIES = (*VOTED, "pgd_4", "l2_1", "square_8", "sparse")
"""Attacks (`training.attacks.listed`) of which `pool_unaware` tells what is answered rightly."""


class Changed(Section):
    """Of `n` benign images under one change: answered rightly with the pool and `without`."""

    n: int
    right: float
    right_interval: Interval
    without: float
    without_interval: Interval


class PoolBenign(Section):
    """Of `n` benign images: answered rightly with the pool and `without`, and `harmed`: rightly only without it.

    `asked`: the share about which the network of small fields is asked, or both others where there is none.
    `shifts`: the same of the first of them under each benign change (`training.data.corruptions`).
    """

    n: int
    threshold: float
    small_field: bool
    right: float
    right_interval: Interval
    without: float
    without_interval: Interval
    harmed: float
    harmed_interval: Interval
    asked: float
    shifts: dict[str, Changed]


class Answered(Section):
    """Of the `fooled` among `n` attacked images: answered rightly with the pool, and `without`; `of_all` n with it.

    With `votes`, that both are on. `undetected`: with the pool wrong and not flagged, of all n, by alpha.
    """

    n: int
    fooled: int
    right: float | None
    right_interval: Interval
    without: float | None
    without_interval: Interval
    votes: float | None = None
    votes_interval: Interval = None
    of_all: float
    of_all_interval: Interval
    undetected: RangedByAlpha


class PoolUnaware(Section):
    pool_unaware: dict[str, Answered]


class PoolAdaptive(Effort, RangedByAlpha):
    """Of `n` images: wrong and not flagged, by alpha, where the pool answers and the attacker knows it."""

    n: int
    eps: int
    restarts: int


def has_pool(bundle: Bundle) -> bool:
    """Whether a pool is fitted for the CPU."""
    return bundle.calibration("cpu", "fp32").pool is not None


def can_be_taken(bundle: Bundle) -> bool:
    """Whether all of the pool is there in torch, for `adaptive_pool` to attack."""
    rule = bundle.calibration("cpu", "fp32").pool
    return rule is not None and (rule.small_field is None or (bundle.path / TENSORS).is_file())


def pool_benign(bench: Bench) -> Found:
    """What the pool changes of benign test images, as they are and under changes that no attacker made."""
    pipeline, rule = _pooling(bench)
    images = bench.first(bench.settings.voted)

    def make(start: int, stop: int, _generator: torch.Generator) -> Arrays:
        return _answers(pipeline, images.x[start:stop])

    rows = bench.rows("pool", "pool", _depends(rule), len(images), CHUNK, make, served=True)
    right, without = rows["served"] == images.y, rows["shown"] == images.y
    harmed = without & ~right
    section = PoolBenign(
        n=len(images),
        threshold=rule.threshold,
        small_field=rule.small_field is not None,
        asked=float(rows["asked"].mean()),
        shifts={name: _changed(bench, pipeline, rule, name) for name in (*CHANGES, *NOISES)},
        **_shares({"right": right, "without": without, "harmed": harmed}, images.group),
    )
    return Found(
        section,
        {
            "pool_accuracy": Figure("pool_accuracy", at=("pool", "right")),
            "pool_harmed": Figure("pool_harmed", at=("pool", "harmed")),
        },
        {"pool_accuracy": right, "pool_harmed": harmed},
    )


def _changed(bench: Bench, pipeline: Pipeline, rule: PoolRule, name: str) -> Changed:
    images = bench.first(bench.settings.shifts)

    def make(start: int, stop: int, _generator: torch.Generator) -> Arrays:
        return _answers(pipeline, shifted[start:stop])

    shifted = changed(images.x, name, seed=bench.settings.seed)
    title = f"pool, {shift_title(name)}"
    rows = bench.rows(title, f"pool-shift-{name}", _depends(rule), len(images), CHUNK, make, served=True)
    shares = {"right": rows["served"] == images.y, "without": rows["shown"] == images.y}
    return Changed(n=len(images), **_shares(shares, images.group))


def pool_unaware(bench: Bench) -> Found:
    """What is answered rightly of attacks whose makers do not know the defence, with the pool and without."""
    (pipeline, rule), both = _pooling(bench), _with_votes(bench)
    sections, figures = {}, {}
    outcomes: dict[str, np.ndarray] = {}
    for name in FAMILIES:
        made, label = attacked(bench, name), ATTACKS[name]

        def make(start: int, stop: int, _generator: torch.Generator, images: np.ndarray = made.images) -> Arrays:
            found = _answers(pipeline, images[start:stop])
            if both is not None:
                found["votes"] = _answers(both, images[start:stop])["served"]
            return found

        depends = _depends(rule) | {each: getattr(bench.settings, each) for each in label.depends}
        rows = bench.rows(f"{label.title}, pool", f"pool-{name}", depends, len(made), CHUNK, make, served=True)
        truth, group = made.clean.y, made.clean.group
        fooled, right = rows["raw"] != truth, rows["served"] == truth
        shares = {"right": right, "without": rows["shown"] == truth}
        if both is not None:
            shares["votes"] = rows["votes"] == truth
        levels = {alpha: ~right & (rows["p"] > pipeline.judge.cutoff(alpha)) for alpha in ALPHAS}
        sections[name] = Answered.model_validate(
            {
                "n": len(made),
                "fooled": int(fooled.sum()),
                **_shares({key: each[fooled] for key, each in shares.items()}, group[fooled]),
                **_shares({"of_all": right}, group),
                "undetected": _by_alpha(levels, group),
            }
        )
        key = f"pool_right_{name}"
        outcomes |= {f"pool_fooled_{name}": fooled, key: right}
        figures[key] = Figure(key, f"pool_fooled_{name}", at=("pool_unaware", name, "right"))
        for alpha in ALPHAS:
            key = f"pool_undetected_{name}_{alpha:g}"
            outcomes[key] = levels[alpha]
            figures[key] = Figure(key, at=("pool_unaware", name, "undetected", f"alpha_{alpha:g}"))
    return Found(PoolUnaware(pool_unaware=sections), figures, outcomes)


def adaptive_pool(bench: Bench, eps: int) -> Found:
    """An attacker (Linf, `eps` of 255) who knows answering network, companion, detector and pool.

    Two ways are tried, both with the pool on the wrong label's side: with the answering network there, too, and not
    flagged at the largest alpha; and whatever that network says, not flagged at the smallest.
    """
    settings, test = bench.settings, bench.first(bench.settings.pooled)
    pipeline, rule = _pooling(bench)
    judge = pipeline.judge
    fields = None
    if rule.small_field is not None:
        fields = load_small_field(bench.bundle).to(bench.device).requires_grad_(False)
    ways: list[tuple[Conditions, Afterwards]] = [
        (unflagged(judge.fusion, judge.level(max(ALPHAS))), overruled(rule, fields)),
        (quiet(judge.fusion, judge.level(min(ALPHAS))), overruled(rule, fields)),
    ]

    def beaten(adversarial: Tensor, label: Tensor) -> Tensor:
        answers = serve(pipeline, as_images(adversarial))
        wrong = answers.served != label.cpu().numpy()
        return torch.from_numpy(np.stack([wrong & ~flags(bench, answers, each) for each in ALPHAS], axis=1))

    def make(start: int, stop: int, generator: torch.Generator) -> Arrays:
        part = test.take(np.arange(start, stop))
        x, y = bench.pixels(part.x), bench.targets(part.y)
        won = np.zeros((len(part), len(ALPHAS)), bool)
        for number, (conditions, afterwards) in enumerate(ways):
            left = np.flatnonzero(~won[:, 0])
            if len(left) == 0:
                break
            rows = torch.from_numpy(left).to(x.device)
            with frozen(bench.defence):
                found = joint_attack(
                    bench.defence,
                    x[rows],
                    y[rows],
                    eps=eps / 255,
                    steps=settings.adaptive_steps,
                    targets=settings.adaptive_targets,
                    restarts=settings.adaptive_restarts,
                    conditions=conditions,
                    afterwards=afterwards,
                    beaten=beaten,
                    generator=generator,
                    progress=partial(bench.progress, f"pool known, {eps}/255, images {start}-{stop}: way {number + 1}"),
                )
            won[left] |= found.cpu().numpy()
        return {"won": won}

    effort = {"steps": settings.adaptive_steps, "targets": settings.adaptive_targets}
    effort |= {"restarts": settings.adaptive_restarts}
    depends, name = effort | _depends(rule) | {"eps": eps}, f"pool-adaptive-{eps}"
    rows = bench.rows(f"pool known, {eps}/255", name, depends, len(test), ADAPTIVE_CHUNK, make, served=True)
    won = dict(zip(ALPHAS, rows["won"].T, strict=True))
    section = PoolAdaptive.model_validate({"n": len(test), "eps": eps, **effort, **_by_alpha(won, test.group)})
    names = dict(zip(ALPHAS, adaptive_figures(eps), strict=True))
    return Found(
        section,
        {name: Figure(name, at=(adaptive_name(eps), f"alpha_{each:g}")) for each, name in names.items()},
        {name: won[each] for each, name in names.items()},
    )


def adaptive_name(eps: int) -> str:
    """Name of the unit that attacks at `eps` of 255, and the start of its figures' names; at 8 it has no number."""
    return "pool_adaptive" if eps == 8 else f"pool_adaptive_{eps}"


def adaptive_figures(eps: int) -> list[str]:
    """Names of the figures of `adaptive_pool` at `eps` of 255, by alpha."""
    return [f"{adaptive_name(eps)}_{each:g}" for each in ALPHAS]


def _pooling(bench: Bench) -> tuple[Pipeline, PoolRule]:
    pipeline = Pipeline.on(bench.pipeline.engine, bench.bundle, alpha=max(ALPHAS), action="sanitize", pool=True)
    assert pipeline.pool is not None
    return pipeline, pipeline.pool


def _with_votes(bench: Bench) -> Pipeline | None:
    if bench.bundle.calibration("cpu", "fp32").votes is None:
        return None
    engine, alpha = bench.pipeline.engine, max(ALPHAS)
    return Pipeline.on(engine, bench.bundle, alpha=alpha, action="sanitize", votes=True, pool=True)


def _answers(pipeline: Pipeline, images: np.ndarray) -> Arrays:
    """Of uint8 images: labels as they came, without the pool and as served (N,), p-values, and where all are asked."""
    decisions = pipeline.decide_images(list(images), explain=False)
    return {
        "raw": np.array([each.raw.prediction.index for each in decisions]),
        "shown": np.array([each.shown.prediction.index for each in decisions]),
        "served": np.array([each.served.prediction.index for each in decisions]),
        "p": np.array([each.raw.verdict.p_value for each in decisions]),
        "asked": np.array([_asked(pipeline, each) for each in decisions]),
    }


def _asked(pipeline: Pipeline, decision: Decision) -> bool:
    """Whether the network of small fields, if the pool has one, is asked for the pool."""
    whole = decision.raw.whole
    if pipeline.pool is None or whole is None or whole.companion_logits is None:
        return False
    if decision.shown.prediction.index != decision.raw.prediction.index:
        return False
    return may_overrule(pipeline.pool, decision.raw.prediction.index, whole.logits, whole.companion_logits)


def _depends(rule: PoolRule) -> dict[str, Any]:
    return rule.model_dump(mode="json", include={"answering", "companion", "small_field", "threshold"})


def _shares(which: dict[str, np.ndarray], group: np.ndarray) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, each in which.items():
        found |= {name: share(each), f"{name}_interval": interval(each, group)}
    return found


def _by_alpha(which: dict[float, np.ndarray], group: np.ndarray) -> dict[str, Any]:
    return _shares({f"alpha_{alpha:g}": each for alpha, each in which.items()}, group)


def _show(found: PoolBenign) -> Body:
    who = "answering network, companion and network of small fields" if found.small_field else "both networks"
    share_asked = f"; the last of them is asked about the {100 * found.asked:.1f} % where it could change the answer"
    fields = share_asked if found.small_field else ""
    text = (
        f"The pool of {who} overrules the first answer from a lead of {found.threshold:.3f} on{fields}. "
        f"n = {found.n:,}."
    )
    rows = [
        ("answered rightly", ranged(found.right, found.right_interval, 2)),
        ("the same without a pool", ranged(found.without, found.without_interval, 2)),
        ("answered rightly only without", ranged(found.harmed, found.harmed_interval, 2)),
    ]
    head = ("benign change", "images", "answered rightly without a pool", "with it")
    changes = [
        (
            shift_title(name),
            f"{row.n:,}",
            ranged(row.without, row.without_interval),
            ranged(row.right, row.right_interval),
        )
        for name, row in found.shifts.items()
    ]
    return [text, Table(("benign images", "share"), rows), Table(head, changes)]


def _show_unaware(found: dict[str, Answered]) -> Body:
    voting = any(row.votes is not None for row in found.values())
    rows = [
        (
            ATTACKS[name].title,
            f"{row.n:,}",
            f"{row.fooled:,}",
            ranged(row.without, row.without_interval),
            ranged(row.right, row.right_interval),
            *([ranged(row.votes, row.votes_interval)] if voting else []),
            ranged(row.of_all, row.of_all_interval),
            ranged(row.undetected.at_1, row.undetected.at_1_interval),
            ranged(row.undetected.at_5, row.undetected.at_5_interval),
        )
        for name, row in found.items()
    ]
    head = [
        "attack",
        "images",
        "fooled",
        "of these served right without a pool",
        "with it",
        *(["with votes, too"] if voting else []),
        "served right, of all",
        "wrong and not flagged, of all, alpha 1 %",
        "alpha 5 %",
    ]
    return [Table(head, rows)]


def _show_adaptive(found: PoolAdaptive) -> Body:
    effort = f"{found.targets} targets x {found.steps} steps from {found.restarts} starting points"
    text = f"Linf {found.eps}/255, {effort}, n = {found.n}."
    row = (ranged(found.at_1, found.at_1_interval), ranged(found.at_5, found.at_5_interval))
    return [text, Table(("wrong and not flagged, alpha 1 %", "alpha 5 %"), [row])]


UNITS = (
    Unit(
        "pool",
        "0",
        "the pool on benign images",
        pool_benign,
        PoolBenign,
        ("pool",),
        (
            Place(
                "pool",
                "The pool on benign images",
                "All networks answer together, unless PALISADE_POOL is false.",
                "benign",
                PoolBenign,
                _show,
            ),
        ),
        figures={
            "pool_accuracy": "benign images answered rightly with the pool",
            "pool_harmed": "benign images answered rightly only without the pool",
        },
        count="voted",
        depends=("shifts",),
        seconds=0.02,
        verified=512,
        companion=True,
        only=has_pool,
    ),
    Unit(
        "pool_unaware",
        "3",
        "attacks by those who do not know the defence, with the pool",
        pool_unaware,
        PoolUnaware,
        (),
        (
            Place(
                "pool_unaware",
                "What the pool answers rightly",
                "Of the images that fool the answering network: served right with the pool and without it.",
                "seen",
                dict[str, Answered],
                _show_unaware,
            ),
        ),
        figures={
            f"pool_right_{name}": f"{ATTACKS[name].title}, where it fools: served right with the pool"
            for name in FAMILIES
        }
        | {
            f"pool_undetected_{name}_{alpha:g}": f"{ATTACKS[name].title}: wrong and not flagged with the pool, of all, "
            f"alpha {100 * alpha:g} %"
            for name in FAMILIES
            for alpha in ALPHAS
        },
        count="patched",
        depends=("unaware", "square", "steps", "square_queries"),
        seconds=4,
        verified=64,
        companion=True,
        only=has_pool,
    ),
    *(
        Unit(
            adaptive_name(eps),
            "4",
            f"an attacker who knows the pool, too, {eps}/255",
            partial(adaptive_pool, eps=eps),
            PoolAdaptive,
            (adaptive_name(eps),),
            (
                Place(
                    adaptive_name(eps),
                    f"An attacker who knows the pool, too, {eps}/255",
                    "Whoever makes companion and another network agree on a wrong label has the pool on his side: "
                    "white-box attacks on all of them and on the detector.",
                    "knows",
                    PoolAdaptive,
                    _show_adaptive,
                ),
            ),
            figures={
                name: f"wrong and not flagged by who knows the pool, at {eps}/255, alpha {100 * alpha:g} %"
                for alpha, name in zip(ALPHAS, adaptive_figures(eps), strict=True)
            },
            count="pooled",
            depends=("adaptive_steps", "adaptive_targets", "adaptive_restarts"),
            seconds=15,
            verified=8,
            companion=True,
            only=can_be_taken,
        )
        for eps in (4, 8)
    ),
)
