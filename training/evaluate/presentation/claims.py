"""Claims of a card: each measured share as one sentence with its interval and n, and what it says about the system.

An attack counts as held against at an alpha where, by the upper end of the 95 % interval, at most `LIMIT` of the
attacked images get a wrong answer without a flag; as not held against where the lower end lies above it; between them,
and without an interval, it is undecided. Of an attack that does not know the defence, the attacked images are those
that fool the answering network, and flags alone count.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import TypeAdapter

from training.evaluate.harness.section import Interval
from training.evaluate.harness.shown import by_eps, percent, ranged
from training.evaluate.measurements.adaptive import Adaptive
from training.evaluate.measurements.certificates import Certificates
from training.evaluate.measurements.harm import Harm
from training.evaluate.measurements.patch_adaptive import PatchAdaptive
from training.evaluate.measurements.pool import Answered, PoolAdaptive, adaptive_name
from training.evaluate.measurements.queries import Asked, Queries
from training.evaluate.measurements.unaware import Unaware
from training.recipes.evaluation import ALPHAS

LIMIT = 0.1
Outcome = Literal["fails", "undecided", "holds"]
Group = Literal["fails", "undecided", "dearer", "holds"]
"""`dearer`: held against at the larger alpha alone, which raises more false alarms."""
Card = Mapping[str, Any]


@dataclass(frozen=True)
class Share:
    """The attacker's share of success at one alpha (None: at any), with its interval."""

    value: float
    interval: Interval
    alpha: float | None = None

    @property
    def outcome(self) -> Outcome:
        if not self.interval:
            return "undecided"
        if self.interval[1] <= LIMIT:
            return "holds"
        return "fails" if self.interval[0] > LIMIT else "undecided"


@dataclass(frozen=True)
class Claim:
    """What one attack reaches: the unit that measured it, a sentence, and the attacker's shares on `n` images."""

    unit: str
    text: str
    n: int
    shares: Sequence[Share]

    @property
    def worst(self) -> float:
        return max(share.value for share in self.shares)

    @property
    def group(self) -> Group:
        outcomes = [share.outcome for share in self.shares]
        if set(outcomes) == {"holds"}:
            return "holds"
        if outcomes[-1] == "holds":
            return "dearer"
        return "fails" if "fails" in outcomes else "undecided"


def claims(card: Card) -> list[Claim]:
    """Every claim of the card about an attack, the worst for the defender first.

    `pydantic.ValidationError` where a section of the card is malformed.
    """
    makers = {
        "adaptive": _adaptive,
        "pool_adaptive_4": _pool_adaptive,
        "pool_adaptive": _pool_adaptive,
        "patch_adaptive": _patch_adaptive,
        "harm": _harm,
        "queries": _queries,
        "certificates": _certificates,
    }
    found = [claim for key, make in makers.items() if card.get(key) for claim in make(card[key])]
    attacks = TypeAdapter(dict[str, Unaware]).validate_python(card.get("unaware", {}))
    titles = card.get("titles", {}).get("attacks", {})
    pooled = TypeAdapter(dict[str, Answered]).validate_python(card.get("pool_unaware", {}))
    found += [
        claim
        for name, row in attacks.items()
        for claim in _unaware(name, titles.get(name, name), row, pooled.get(name))
    ]
    return sorted(found, key=lambda claim: -claim.worst)


def both(shares: Sequence[Share]) -> str:
    """The shares with their intervals, by alpha."""
    return ", ".join(f"{ranged(share.value, share.interval)} at alpha {percent(share.alpha, 0)}" for share in shares)


def _adaptive(section: object) -> Iterator[Claim]:
    found = Adaptive.model_validate(section)
    for eps, row in by_eps(found.rows):
        shares = _by_alpha((row.at_1, row.at_1_interval), (row.at_5, row.at_5_interval))
        if shares:
            text = (
                f"An attacker who knows every part of the defence and may change each pixel by {eps} gets a wrong "
                f"answer without a flag: {both(shares)}, n = {row.n:,}."
            )
            yield Claim(f"adaptive_{eps.partition('/')[0]}", text, row.n, shares)


def _pool_adaptive(section: object) -> Iterator[Claim]:
    found = PoolAdaptive.model_validate(section)
    who = f"An attacker who knows every part of the defence, and the pool, and may change each pixel by {found.eps}/255"
    yield from _knowing(adaptive_name(found.eps), f"{who} gets a wrong answer of the pool without a flag", found)


def _patch_adaptive(section: object) -> Iterator[Claim]:
    found = PatchAdaptive.model_validate(section)
    who = f"A patch of {found.side}x{found.side} pixels whose maker knows the defence"
    yield from _knowing("patch_adaptive", f"{who} gets a wrong answer without a flag", found)


def _knowing(unit: str, wins: str, found: PoolAdaptive | PatchAdaptive) -> Iterator[Claim]:
    if shares := _by_alpha((found.at_1, found.at_1_interval), (found.at_5, found.at_5_interval)):
        yield Claim(unit, f"{wins}: {both(shares)}, n = {found.n:,}.", found.n, shares)


def _harm(section: object) -> Iterator[Claim]:
    found = Harm.model_validate(section)
    text = (
        f"An attacker who may change each pixel by {found.eps:g}/255 and aims at the neutralisation has it turn a "
        f"right answer into a wrong one, flagged or not: {ranged(found.harmed, found.harmed_interval)}, "
        f"n = {found.n:,}."
    )
    yield Claim("harm", text, found.n, [Share(found.harmed, found.harmed_interval)])


def _certificates(section: object) -> Iterator[Claim]:
    found = Certificates.model_validate(section)
    each = found.default
    bound = ranged(each.double_masking_errs, each.double_masking_errs_interval)
    text = (
        f"A patch of {each.patch}x{each.patch} pixels, whatever it shows and wherever it lies, gets a wrong answer "
        f"that is certified as `proved` on at most {bound} of images, n = {found.n:,}. This follows from the images "
        "without a patch, and no attack can exceed it; "
        f"{ranged(each.proved, each.proved_interval)} of images that nobody attacked are answered rightly and `proved`."
    )
    yield Claim("certificates", text, found.n, [Share(each.double_masking_errs, each.double_masking_errs_interval)])


def _queries(section: object) -> Iterator[Claim]:
    found = Queries.model_validate(section)
    levels: dict[str, Asked] = {"label": found.label, "verdict": found.verdict, "full": found.full}
    for level, row in levels.items():
        text = (
            f"An attacker who may ask the gateway {found.budget:,} times an image, is shown disclosure `{level}` and "
            f"may change each pixel by {found.eps:g}/255 ({row.attack}) gets a wrong answer without a flag: "
            f"{ranged(row.won, row.won_interval)}, n = {found.n:,}."
        )
        yield Claim("queries", text, found.n, [Share(row.won, row.won_interval)])


def _unaware(name: str, title: str, row: Unaware, pooled: Answered | None) -> Iterator[Claim]:
    seen = [(cut.flagged, cut.flagged_interval) for cut in (row.at_1, row.at_5)]
    shares = _by_alpha(*((_less(value), _reversed(limits)) for value, limits in seen))
    flags = _by_alpha(*seen)
    if not shares:
        return
    text = (
        f"{title[0].upper()}{title[1:]}, made without knowing the defence, fools the network on {row.fooled:,} of "
        f"{row.n:,} images; of those are flagged: {both(flags)}, n = {row.fooled:,}."
    )
    if row.side is not None and row.recovered is not None:
        text += f" Neutralisation repairs the answer: {ranged(row.recovered, row.recovered_interval)}."
    if pooled is not None and pooled.right is not None:
        text += f" With the pool the answer is right on {ranged(pooled.right, pooled.right_interval)}."
    yield Claim(name, text, row.fooled, shares)


def _by_alpha(*shares: tuple[float | None, Interval]) -> list[Share]:
    """Shares at each of `ALPHAS`; none unless all are there."""
    found = zip(ALPHAS, shares, strict=True)
    made = [Share(value, limits, alpha) for alpha, (value, limits) in found if value is not None]
    return made if len(made) == len(ALPHAS) else []


def _less(value: float | None) -> float | None:
    return None if value is None else 1 - value


def _reversed(limits: Interval) -> Interval:
    return None if not limits else (1 - limits[1], 1 - limits[0])
