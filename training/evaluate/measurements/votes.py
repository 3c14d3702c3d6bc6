"""Masks that vote (`gateway.core.votes`): what they cost benign images, what they guarantee, and whether a maker of
patches who knows of them gets by.
"""

from __future__ import annotations

from functools import partial
from itertools import product
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from gateway.core.loading import Bundle
from gateway.core.masks import MaskSet
from gateway.core.pipeline import Pipeline
from gateway.core.votes import Votes, margins, votes_part
from training.attacks.conditions import Conditions, unflagged
from training.attacks.joint_patch import joint_patch_attack
from training.attacks.joint_run import Afterwards, Looks
from training.attacks.listed import ATTACKS
from training.attacks.neutralised import still_wrong
from training.attacks.patch import Kind
from training.attacks.pooled import overruled
from training.attacks.voting import Tolerated, least_objections, outvoted, outvoted_by
from training.bundling.small_field import TENSORS, load_small_field
from training.bundling.votes import logits_under
from training.data.dataset import Split
from training.evaluate.harness.attacked import attacked, flags
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
from training.util.statistics import interval, share, threshold_at

CHUNK = 64
ADAPTIVE_CHUNK = 16
FAMILIES = (
    "bars",
    "dull_sticker",
    "half_shadow",
    "colour_cast",
    "rain",
    "strip",
    "strip_smooth",
    "oblong_smooth",
    "pair",
    "patch",
    "patch_low",
    "fgsm_8",
    "pgd_8",
)
"""Attacks (`training.attacks.listed`) of which `votes_unaware` tells what votes find."""
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
    """Of `n` images: wrong and not flagged, by alpha, where masks vote and the maker of the patch knows it.

    With `pool`, all networks answer together, which the maker knows as well.
    """

    n: int
    side: int
    by: Literal["masks", "small_field"] = "masks"
    pool: bool = False


class Heard(RangedByAlpha):
    """Of the `fooled` among `n` images of an attack, shares flagged at the same `measured` rates of false alarms.

    `without` are those of the same system without votes; `alpha_*` and `recovered` are as served with them.
    """

    n: int
    fooled: int
    measured: RangedByAlpha
    without: RangedByAlpha
    recovered: float | None


class Voters(Section):
    votes_unaware: dict[str, Heard]


def can_be_outvoted(bundle: Bundle) -> bool:
    """Whether what votes, and answers with it, is there in torch, for `adaptive_votes` to attack."""
    calibration = bundle.calibration("cpu", "fp32")
    rule, pool = calibration.votes, calibration.pool
    if rule is None:
        return False
    asks_fields = rule.by == "small_field" or (pool is not None and pool.small_field is not None)
    return not asks_fields or (bundle.path / TENSORS).is_file()


def can_vote(bundle: Bundle) -> bool:
    """Whether the bundle's masks can vote on the CPU."""
    return bundle.calibration("cpu", "fp32").votes is not None


def votes(bench: Bench) -> Found:
    """False alarms of the system whose masks vote, and the share of images on which its flags are guaranteed."""
    images, rows = _benign(bench)
    voting, rule = _voting(bench)
    judge, right = voting.judge, rows["served"] == images.y
    flagged, guaranteed, without = {}, {}, {}
    for alpha in ALPHAS:
        cutoff = judge.cutoff(alpha)
        flagged[alpha] = rows["p"] <= cutoff
        without[alpha] = rows["without"] <= cutoff
        guaranteed[alpha] = rows["margin"] > rule.limit(votes_part(cutoff, rule.beyond)) + ROUNDING
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
    patch must keep its label. The same of windows of the network of small fields, which is attacked at the same time.
    Two ways are tried with each kind: an answer that is wrong even after neutralisation, whatever the other scores say,
    and one that no other score gives away. Where the bundle has a pool, it has to answer the same.
    """
    settings = bench.settings
    clean = bench.test.take(bench.right_first(settings.voted_patched))
    voting, rule = _voting(bench, pool=None)
    pool = voting.pool
    alpha = max(ALPHAS)
    judge, level = voting.judge, voting.judge.level(alpha, votes=True)
    masks = rule.masks
    limit, side = rule.limit(votes_part(judge.cutoff(alpha), rule.beyond)), masks.patch
    fields = None
    if not isinstance(masks, MaskSet) or (pool is not None and pool.small_field is not None):
        fields = load_small_field(bench.bundle).to(bench.device).requires_grad_(False)
    if isinstance(masks, MaskSet):
        outvoting = outvoted(masks, limit)
    else:
        assert fields is not None
        outvoting = outvoted_by(fields, masks, limit, rule.whole)
    overruling = None if pool is None else overruled(pool, fields)

    def kept(*seen: Any) -> list[Tensor]:
        return [*outvoting(*seen), *([] if overruling is None else overruling(*seen))]

    repaired = still_wrong(judge.calibration.recovery)
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
    depends: dict[str, Any] = effort | (
        {} if rule.by == "masks" else {"by": rule.by, "limit": limit, "whole": rule.whole}
    )
    depends |= {} if pool is None else {"pool": pool.model_dump(mode="json", exclude={"harmed", "n", "groups"})}
    rows = bench.rows("patches, votes known", "votes-adaptive", depends, len(clean), ADAPTIVE_CHUNK, make, served=True)
    won = dict(zip(ALPHAS, rows["won"].T, strict=True))
    section = VotingAdaptive.model_validate(
        {
            "n": len(clean),
            "side": side,
            "by": rule.by,
            "pool": pool is not None,
            **effort,
            **_ranged(won, clean.group).to_json(),
        }
    )
    names = {each: f"voted_adaptive_{each:g}" for each in ALPHAS}
    return Found(
        section,
        {name: Figure(name, at=("votes_adaptive", f"alpha_{each:g}")) for each, name in names.items()},
        {name: won[each] for each, name in names.items()},
    )


def _benign(bench: Bench) -> tuple[Split, Arrays]:
    """Benign test images, and what the system whose masks vote makes of them."""
    images = bench.first(bench.settings.voted)
    voting, rule = _voting(bench)

    def make(start: int, stop: int, _generator: torch.Generator) -> Arrays:
        some = images.take(np.arange(start, stop))
        return _voted(voting, some.x) | {"margin": margins(some.y, logits_under(voting, some.x, rule.masks))}

    return images, bench.rows("votes of masks", "votes", _depends(rule), len(images), CHUNK, make, served=True)


def _voted(voting: Pipeline, images: np.ndarray) -> Arrays:
    """Of uint8 images: p-values with and without votes, and the labels served and given before neutralisation (N,)."""
    decisions = voting.decide_images(list(images), explain=False)
    verdicts = [each.raw.verdict for each in decisions]
    return {
        "p": np.array([each.p_value for each in verdicts]),
        "without": np.array([each.p_without_votes for each in verdicts], np.float64),
        "served": np.array([each.served.prediction.index for each in decisions]),
        "raw": np.array([each.raw.outputs.logits.argmax() for each in decisions]),
    }


def _depends(rule: Votes) -> dict[str, Any]:
    stated = {"patch": rule.masks.patch, "masks": len(rule.masks), "by": rule.by}
    return stated | ({} if rule.whole is None else {"whole": rule.whole, "beyond": rule.beyond})


def _voting(bench: Bench, *, pool: bool | None = False) -> tuple[Pipeline, Votes]:
    # Flags are read at each of `ALPHAS`; a bundle of few groups may have none at its own.
    alpha = max(ALPHAS)
    pipeline = Pipeline.on(bench.pipeline.engine, bench.bundle, alpha=alpha, action="sanitize", votes=True, pool=pool)
    assert pipeline.votes is not None
    return pipeline, pipeline.votes


def _ranged(which: dict[float, np.ndarray], group: np.ndarray) -> RangedByAlpha:
    found: dict[str, Any] = {}
    for alpha, each in which.items():
        found |= {f"alpha_{alpha:g}": share(each), f"alpha_{alpha:g}_interval": interval(each, group)}
    return RangedByAlpha.model_validate(found)


def votes_unaware(bench: Bench) -> Found:
    """What votes find of attacks whose makers do not know the defence, beside the same system without votes.

    Of the images that fool the answering network, at the false alarms measured on the benign images of `votes`.
    """
    (voting, rule), (_, benign) = _voting(bench), _benign(bench)
    sections, figures, outcomes = {}, {}, {}
    for name in FAMILIES:
        made = attacked(bench, name)

        def make(start: int, stop: int, _generator: torch.Generator, images: np.ndarray = made.images) -> Arrays:
            return _voted(voting, images[start:stop])

        depends = _depends(rule) | {each: getattr(bench.settings, each) for each in ATTACKS[name].depends}
        title = f"{ATTACKS[name].title}, with votes"
        rows = bench.rows(title, f"votes-{name}", depends, len(made), CHUNK, make, served=True)
        fooled = rows["raw"] != made.clean.y
        group, recovered = made.clean.group[fooled], rows["served"] == made.clean.y
        caught = {
            way: {rate: -rows[way] > threshold_at(-benign[way], rate) for rate in ALPHAS} for way in ("p", "without")
        }
        served = {alpha: rows["p"] <= voting.judge.cutoff(alpha) for alpha in ALPHAS}
        outcomes[f"voted_fooled_{name}"] = fooled
        for rate in ALPHAS:
            key = f"voted_{name}_{rate:g}"
            outcomes[key] = caught["p"][rate]
            at = ("votes_unaware", name, "measured", f"alpha_{rate:g}")
            figures[key] = Figure(key, f"voted_fooled_{name}", at=at)
        sections[name] = Heard.model_validate(
            {
                "n": len(made),
                "fooled": int(fooled.sum()),
                "measured": _among(caught["p"], fooled, group),
                "without": _among(caught["without"], fooled, group),
                "recovered": share(recovered, fooled),
                **_among(served, fooled, group),
            }
        )
    return Found(Voters(votes_unaware=sections), figures, outcomes)


def _among(which: dict[float, np.ndarray], fooled: np.ndarray, group: np.ndarray) -> dict[str, Any]:
    return _ranged({alpha: each[fooled] for alpha, each in which.items()}, group).to_json()


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


def _show_unaware(found: dict[str, Heard]) -> Body:
    rows = [
        (
            ATTACKS[name].title,
            f"{row.n:,}",
            f"{row.fooled:,}",
            *(
                ranged(value, bounds)
                for each in (row.without, row.measured)
                for value, bounds in ((each.at_1, each.at_1_interval), (each.at_5, each.at_5_interval))
            ),
            ranged(row.at_1, row.at_1_interval),
            ranged(row.at_5, row.at_5_interval),
            percent(row.recovered),
        )
        for name, row in found.items()
    ]
    head = (
        "attack",
        "images",
        "fooled",
        "flagged without votes, 1 % of benign images",
        "5 %",
        "with votes, 1 %",
        "5 %",
        "as served, alpha 1 %",
        "alpha 5 %",
        "served right",
    )
    return [Table(head, rows)]


def _show_adaptive(found: VotingAdaptive) -> Body:
    whose = "masks" if found.by == "masks" else "windows of cells of the network of small fields"
    effort = f"{found.targets} labels x {found.steps} steps, either kind of patch, side {found.side}"
    text = f"{effort}, {whose}, {'with' if found.pool else 'without'} the pool, n = {found.n}."
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
        "votes_unaware",
        "3",
        "what votes find of attacks that do not know them",
        votes_unaware,
        Voters,
        (),
        (
            Place(
                "votes_unaware",
                "What votes find",
                "With PALISADE_VOTES, of the images that fool the answering network, beside the same system without "
                "votes where each flags the same measured share of benign test images.",
                "seen",
                dict[str, Heard],
                _show_unaware,
            ),
        ),
        figures={
            f"voted_{name}_{rate:g}": f"{ATTACKS[name].title}: detected with votes at a measured {100 * rate:g} % of "
            "false positives"
            for name in FAMILIES
            for rate in ALPHAS
        },
        count="patched",
        depends=("unaware", "steps", "voted"),
        seconds=4,
        verified=8,
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
                "With PALISADE_VOTES: the maker aims at places and labels that what votes tolerates.",
                "knows",
                VotingAdaptive,
                _show_adaptive,
            ),
        ),
        figures={
            "voted_adaptive_0.01": "patches whose maker knows all, where masks vote: wrong and not flagged, alpha 1 %",
            "voted_adaptive_0.05": "patches whose maker knows all, where masks vote: wrong and not flagged, alpha 5 %",
        },
        count="voted_patched",
        depends=("adaptive_steps",),
        seconds=90,
        verified=8,
        companion=True,
        only=can_be_outvoted,
        version=2,
    ),
)
