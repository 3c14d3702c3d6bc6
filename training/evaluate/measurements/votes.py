"""Masks that vote (`gateway.core.votes`): what they cost benign images, what they guarantee, and whether a maker of
patches who knows of them gets by.
"""

from __future__ import annotations

from functools import partial
from itertools import product
from typing import Any, Literal

import numpy as np
import torch

from gateway.core.loading import Bundle
from gateway.core.masks import MaskSet
from gateway.core.pipeline import Pipeline
from gateway.core.votes import SHARE, Votes, margins
from training.attacks.conditions import Conditions, unflagged
from training.attacks.joint_patch import joint_patch_attack
from training.attacks.joint_run import Afterwards, Looks
from training.attacks.neutralised import still_wrong
from training.attacks.patch import Kind
from training.attacks.voting import Tolerated, least_objections, outvoted
from training.bundling.votes import logits_under
from training.evaluate.harness.attacked import flags
from training.evaluate.harness.bench import Bench, as_images
from training.evaluate.harness.found import Figure, Found
from training.evaluate.harness.section import ByAlpha, Effort, RangedByAlpha, Section
from training.evaluate.harness.shown import Body, Table, percent, ranged
from training.evaluate.harness.store import Arrays
from training.evaluate.harness.unit import Place, Unit
from training.evaluate.measurements.patch_adaptive import answered_wrongly
from training.recipes.evaluation import ALPHAS
from training.served.answers import serve
from training.util.module_modes import frozen
from training.util.statistics import interval

CHUNK = 64
ADAPTIVE_CHUNK = 16
KINDS: tuple[Kind, ...] = ("noisy", "low_frequency")
PLACES, TARGETS = 4, 3
ROUNDING = 1e-3
"""Of probability: more than rounding changes between machines and batch sizes (`gateway.core.certificate.LEADS`)."""


class Voting(Section):
    """Votes of masks for patches of side `patch`, which cover `share` of the image; `masks` in all.

    Of `n` benign images the shares `flagged` by the system whose masks vote; and `guaranteed`, those of the images
    that are answered rightly under no patch of that size, or a smaller one, could be answered wrongly without a flag.
    """

    n: int
    by: Literal["masks", "small_field"] = "masks"
    patch: int
    share: float
    masks: int
    flagged: RangedByAlpha
    guaranteed: RangedByAlpha
    without: ByAlpha


class VotingAdaptive(Effort, RangedByAlpha):
    """Of `n` images: wrong and not flagged, by alpha, where masks vote and the maker of the patch knows it."""

    n: int
    side: int


def masks_vote(bundle: Bundle) -> bool:
    """Whether masks of the answering network vote, whose attacker `adaptive_votes` is."""
    rule = bundle.calibration("cpu", "fp32").votes
    return rule is not None and rule.by == "masks"


def can_vote(bundle: Bundle) -> bool:
    """Whether the bundle's masks can vote on the CPU."""
    return bundle.calibration("cpu", "fp32").votes is not None


def votes(bench: Bench) -> Found:
    """False alarms of the system whose masks vote, and the share of images on which its flags are guaranteed."""
    images = bench.first(bench.settings.voted)
    voting, rule = _voting(bench)

    def make(start: int, stop: int, _generator: torch.Generator) -> Arrays:
        some = images.take(np.arange(start, stop))
        decisions = voting.decide_images(list(some.x), explain=False)
        verdicts = [each.raw.verdict for each in decisions]
        return {
            "p": np.array([each.p_value for each in verdicts]),
            "without": np.array([each.p_without_votes for each in verdicts], np.float64),
            "served": np.array([each.served.prediction.index for each in decisions]),
            "margin": margins(some.y, logits_under(voting, some.x, rule.masks)),
        }

    depends = {"patch": rule.masks.patch, "masks": len(rule.masks), "by": rule.by}
    rows = bench.rows("votes of masks", "votes", depends, len(images), CHUNK, make, served=True)
    judge, right = voting.judge, rows["served"] == images.y
    flagged, guaranteed, without = {}, {}, {}
    for alpha in ALPHAS:
        cutoff = judge.cutoff(alpha)
        flagged[alpha] = rows["p"] <= cutoff
        without[alpha] = rows["without"] <= cutoff
        guaranteed[alpha] = rows["margin"] > rule.limit(cutoff * SHARE) + ROUNDING
    section = Voting(
        n=len(images),
        by=rule.by,
        patch=rule.masks.patch,
        share=rule.masks.share,
        masks=len(rule.masks),
        flagged=_ranged(flagged, images.group),
        guaranteed=_ranged({alpha: each[right] for alpha, each in guaranteed.items()}, images.group[right]),
        without=ByAlpha.model_validate({f"alpha_{alpha:g}": float(each.mean()) for alpha, each in without.items()}),
    )
    figures, outcomes = {}, {}
    for alpha in ALPHAS:
        figures[f"voted_flagged_{alpha:g}"] = Figure(
            f"voted_flagged_{alpha:g}", at=("votes", "flagged", f"alpha_{alpha:g}")
        )
        outcomes[f"voted_flagged_{alpha:g}"] = flagged[alpha]
        name = f"voted_guaranteed_{alpha:g}"
        figures[name] = Figure(name, "voted_right", at=("votes", "guaranteed", f"alpha_{alpha:g}"))
        outcomes[name] = guaranteed[alpha]
    return Found(section, figures, outcomes | {"voted_right": right})


def adaptive_votes(bench: Bench) -> Found:
    """Patches whose maker knows localiser, gate, companion, detector and masks, noisy or of low frequency.

    Places and labels are those that the masks which hide the patch tolerate, if there are any; under all others the
    patch must keep its label. Two ways are tried with each kind: an answer that is wrong even after neutralisation,
    whatever the other scores say, and one that no other score gives away.
    """
    settings = bench.settings
    clean = bench.test.take(bench.right_first(settings.adaptive_patched))
    voting, rule = _voting(bench)
    alpha = max(ALPHAS)
    judge, level = voting.judge, voting.judge.level(alpha, votes=True)
    masks = rule.masks
    assert isinstance(masks, MaskSet)
    limit, side = rule.limit(voting.judge.cutoff(alpha) * SHARE), masks.patch
    kept, repaired = outvoted(masks, limit), still_wrong(judge.calibration.recovery)
    ways: list[tuple[Looks, Conditions, Afterwards]] = [
        ("networks", answered_wrongly, lambda *seen: [*repaired(*seen), *kept(*seen)]),
        ("all", unflagged(judge.fusion, level), kept),
    ]

    def beaten(adversarial: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        answers = serve(voting, as_images(adversarial))
        wrong = answers.served != label.cpu().numpy()
        found = [wrong & ~flags(bench, answers, each) for each in ALPHAS]
        return torch.from_numpy(np.stack(found, axis=1))

    def make(start: int, stop: int, generator: torch.Generator) -> Arrays:
        part = clean.take(np.arange(start, stop))
        x, y = bench.pixels(part.x), bench.targets(part.y)
        least = least_objections(logits_under(voting, part.x, masks), part.y, masks, side)
        won = np.zeros((len(part), len(ALPHAS)), bool)
        for kind, (looks, conditions, afterwards) in product(KINDS, ways):
            left = np.flatnonzero(~won[:, -1])
            if len(left) == 0:
                break
            rows = torch.from_numpy(left).to(x.device)
            aims = Tolerated(x[rows], least[left], limit, width=masks.width, side=side, kind=kind, generator=generator)
            with frozen(bench.defence):
                found = joint_patch_attack(
                    bench.defence,
                    x[rows],
                    y[rows],
                    side=side,
                    kind=kind,
                    places=PLACES,
                    steps=settings.adaptive_steps,
                    targets=TARGETS,
                    looks=looks,
                    conditions=conditions,
                    afterwards=afterwards,
                    aims=aims,
                    beaten=beaten,
                    generator=generator,
                    progress=partial(bench.progress, f"patches, votes known, images {start}-{stop}: {kind}, {looks}"),
                )
            won[left] |= found.cpu().numpy()
        return {"won": won}

    effort = {"steps": settings.adaptive_steps, "targets": TARGETS}
    rows = bench.rows("patches, votes known", "votes-adaptive", effort, len(clean), ADAPTIVE_CHUNK, make, served=True)
    won = dict(zip(ALPHAS, rows["won"].T, strict=True))
    section = VotingAdaptive.model_validate(
        {"n": len(clean), "side": side, **effort, **_ranged(won, clean.group).to_json()}
    )
    names = {each: f"voted_adaptive_{each:g}" for each in ALPHAS}
    return Found(
        section,
        {name: Figure(name, at=("votes_adaptive", f"alpha_{each:g}")) for each, name in names.items()},
        {name: won[each] for each, name in names.items()},
    )


def _voting(bench: Bench) -> tuple[Pipeline, Votes]:
    # Flags are read at each of `ALPHAS`; a bundle of few groups may have none at its own.
    alpha = max(ALPHAS)
    pipeline = Pipeline.on(bench.pipeline.engine, bench.bundle, alpha=alpha, action="sanitize", votes=True)
    assert pipeline.votes is not None
    return pipeline, pipeline.votes


def _ranged(which: dict[float, np.ndarray], group: np.ndarray) -> RangedByAlpha:
    found: dict[str, Any] = {}
    for alpha, each in which.items():
        found |= {f"alpha_{alpha:g}": float(each.mean()), f"alpha_{alpha:g}_interval": interval(each, group)}
    return RangedByAlpha.model_validate(found)


def _interval(found: RangedByAlpha) -> tuple[str, str]:
    return ranged(found.at_1, found.at_1_interval), ranged(found.at_5, found.at_5_interval)


def _show(found: Voting) -> Body:
    head = ("where masks vote", "alpha 1 %", "alpha 5 %")
    rows = [
        ("benign images flagged", *_interval(found.flagged)),
        ("the same without votes", percent(found.without.at_1), percent(found.without.at_5)),
        ("right answers that no such patch changes without a flag", *_interval(found.guaranteed)),
    ]
    text = (
        f"{found.masks} {'masks' if found.by == 'masks' else 'windows of cells of the network of small fields'} for "
        f"squares of {found.patch} pixels a side ({percent(found.share)} of the image), n = {found.n:,}. The guarantee "
        "is of what is answered without what a patch can touch: no attack enters it."
    )
    return [text, Table(head, rows)]


def _show_adaptive(found: VotingAdaptive) -> Body:
    text = f"{found.targets} labels x {found.steps} steps, either kind of patch, side {found.side}, n = {found.n}."
    return [text, Table(("wrong and not flagged, alpha 1 %", "alpha 5 %"), [_interval(found)])]


UNITS = (
    Unit(
        "votes",
        "0",
        "votes of masks on benign images, and what they guarantee",
        votes,
        Voting,
        ("votes",),
        (
            Place(
                "votes",
                "Votes of masks",
                "With PALISADE_VOTES, masks of which one hides any small square vote on each verdict.",
                "benign",
                Voting,
                _show,
            ),
        ),
        figures={
            "voted_flagged_0.01": "benign images flagged at alpha 1 % where masks vote",
            "voted_flagged_0.05": "benign images flagged at alpha 5 % where masks vote",
            "voted_guaranteed_0.01": "right answers that no small patch changes without a flag at alpha 1 %",
            "voted_guaranteed_0.05": "right answers that no small patch changes without a flag at alpha 5 %",
        },
        count="voted",
        seconds=0.05,
        verified=200,
        only=can_vote,
    ),
    Unit(
        "votes_adaptive",
        "4",
        "patches whose maker knows the defence and that masks vote",
        adaptive_votes,
        VotingAdaptive,
        ("votes_adaptive",),
        (
            Place(
                "votes_adaptive",
                "Patches whose maker knows that masks vote",
                "With PALISADE_VOTES: the maker aims at places and labels that the masks tolerate.",
                "knows",
                VotingAdaptive,
                _show_adaptive,
            ),
        ),
        figures={
            "voted_adaptive_0.01": "patches whose maker knows all, where masks vote: wrong and not flagged, alpha 1 %",
            "voted_adaptive_0.05": "patches whose maker knows all, where masks vote: wrong and not flagged, alpha 5 %",
        },
        count="adaptive_patched",
        depends=("adaptive_steps",),
        seconds=90,
        verified=8,
        companion=True,
        only=masks_vote,
    ),
)
