"""The first page of a card, in plain words: what the system does not hold against, what it holds against, the price.

Every sentence states a figure of the card with its interval and n, and nothing that the card does not hold.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from training.errors import TrainingError
from training.evaluate.harness.shown import percent, ranged
from training.evaluate.measurements.benign import Benign, WorstClasses
from training.evaluate.measurements.cascade import Cascade
from training.evaluate.measurements.pool import PoolBenign
from training.evaluate.measurements.shifts import Shifts
from training.evaluate.presentation.claims import LIMIT, Claim, Group, claims

Card = Mapping[str, Any]
TITLE = "In plain words"
PLAIN_SINCE = 5
"""Schema version of cards from which on they open with this page."""
GROUPS: dict[Group, str] = {
    "fails": "It does not hold against",
    "undecided": "Undecided: too few images to tell",
    "dearer": "It holds only with more false alarms (alpha 5 %)",
    "holds": "It holds against",
}
UNKNOWN, PRICE = "Not measured, or on too few images", "The price"
_BETWEEN: tuple[Group, ...] = ("undecided", "dearer")
_FOUND_BY_KNOWING = ("adaptive", "patch_adaptive")


@dataclass(frozen=True)
class Part:
    """A heading and the sentences below it."""

    title: str
    sentences: Sequence[str]


def plain(card: Card, bounds: Sequence[Card]) -> list[Part]:
    """The page's parts, the worst first; parts without a sentence are left out.

    `bounds` are the rows of `card.check`. `TrainingError` where a section of the card is malformed.
    """
    try:
        found = claims(card)
        parts = [
            Part("How to read this page", _reading(card)),
            Part(GROUPS["fails"], [*_failed(card), *_missed(bounds), *_of("fails", found)]),
            *(Part(GROUPS[group], _of(group, found)) for group in _BETWEEN),
            Part(UNKNOWN, _unknown(card)),
            Part(GROUPS["holds"], [*_of("holds", found), *_kept(bounds)]),
            Part(PRICE, price(card)),
        ]
    except ValidationError as error:
        where = ".".join(map(str, error.errors()[0]["loc"]))
        raise TrainingError(f"the card has no such section: {where}: {error.errors()[0]['msg']}") from None
    return [part for part in parts if part.sentences]


def limitations(card: Card) -> list[str]:
    """Sentences on what the system does not hold against, and on what nothing is known of."""
    found = claims(card)
    groups: list[Group] = ["fails", *_BETWEEN]
    return [*_failed(card), *(text for group in groups for text in _of(group, found)), *_unknown(card)]


def _reading(card: Card) -> list[str]:
    sentences = [
        (
            "Each sentence has a measured share, its 95 % interval in brackets, and n, the number of images behind it. "
            f"`Holds` means: at most {percent(LIMIT, 0)} of the attacked images get a wrong answer without a flag, by "
            "the upper end of the interval. It is no proof: it is about the attacks named here, and a stronger one "
            "may reach more. Alpha is the share of benign images that the operator accepts to have flagged."
        )
    ]
    if registered := card.get("registration"):
        sentences.append(
            f"Bounds, data, seed and numbers of images were registered on {registered['time'][:10]}, before measuring; "
            f"the SHA-256 of that is `{registered['sha256']}`."
        )
    else:
        sentences.append("No registration stands behind this card: nothing shows that its bounds were set first.")
    if card.get("pool"):
        sentences.append(
            "All networks of this bundle answer together (a pool) unless PALISADE_POOL is false. Sentences that do not "
            "name the pool are of the system without it; flags are the same."
        )
    return sentences


def _of(group: Group, found: Sequence[Claim]) -> list[str]:
    return [claim.text for claim in found if claim.group == group]


def _failed(card: Card) -> list[str]:
    failed = [row["title"] for row in card.get("checks", []) if row["passed"] is False]
    return [f"A self-check failed, so that figures here overstate the defence: {title}." for title in failed]


def _missed(bounds: Sequence[Card]) -> list[str]:
    signs = {"at_least": "at least", "at_most": "at most"}
    return [
        f"A bound is missed: {row['title']} is {percent(row['value'])}, and should be {signs[row['kind']]} "
        f"{percent(row['bound'])}, n = {row['n']:,}."
        for row in bounds
        if row["pass"] is False
    ]


def _kept(bounds: Sequence[Card]) -> list[str]:
    kept = sum(row["pass"] is True for row in bounds)
    return [f"{kept} of the {len(bounds)} bounds that its recipe sets are kept (table below)."] if bounds else []


def _unknown(card: Card) -> list[str]:
    titles = card.get("titles", {}).get("units", {})
    named = [titles.get(name, f"`{name}`") for name in card.get("missing", [])]
    sentences = []
    if not any(card.get(key) for key in _FOUND_BY_KNOWING):
        sentences.append("No attacker who knows the defence was tried: the card does not show that it holds there.")
    if named:
        sentences.append(f"Nothing is known of: {'; '.join(named)}.")
    if fewer := [titles.get(name, f"`{name}`") for name in card.get("reduced", [])]:
        sentences.append(f"On fewer images than planned: {'; '.join(fewer)}.")
    return sentences


def price(card: Card) -> list[str]:
    """What the defence costs: clean accuracy, false alarms, forward passes."""
    sentences = []
    if content := card.get("pool"):
        sentences.append(_pooled(PoolBenign.model_validate(content)))
    if content := card.get("benign"):
        sentences += _benign(Benign.model_validate(content), "without the pool" if card.get("pool") else "as served")
    if content := card.get("worst_classes"):
        worst = WorstClasses.model_validate(content)
        sentences.append(
            f"The class with most false alarms, {worst.flagged_5.name}, has {percent(worst.flagged_1.share)} flagged "
            f"at alpha 1 % and {percent(worst.flagged_5.share)} at alpha 5 %, n = {worst.flagged_5.n:,}; the card has "
            "no interval for it."
            if worst.flagged_1.name == worst.flagged_5.name
            else f"The class with most false alarms at alpha 5 %, {worst.flagged_5.name}, has "
            f"{percent(worst.flagged_5.share)} flagged, n = {worst.flagged_5.n:,}; the card has no interval for it."
        )
    if content := card.get("shifts"):
        sentences += _worst_shift(Shifts.model_validate(content), card.get("titles", {}).get("shifts", {}))
    return [*sentences, *_forwards(card)]


def _pooled(found: PoolBenign) -> str:
    return (
        f"Of images that nobody attacked, {ranged(found.right, found.right_interval)} get the right answer as served, "
        f"with the pool; {ranged(found.harmed, found.harmed_interval, 2)} only without it, n = {found.n:,}."
    )


def _benign(found: Benign, served: str) -> list[str]:
    return [
        (
            f"Of images that nobody attacked, {ranged(found.accuracy_served, found.accuracy_served_interval)} get the "
            f"right answer {served}; the network without the defence answers "
            f"{ranged(found.accuracy_answering, found.accuracy_answering_interval)} rightly, n = {found.n:,}."
        ),
        (
            "Neutralisation turns a right answer into a wrong one on "
            f"{ranged(found.harmed, found.harmed_interval, 2)} of them, n = {found.n:,}."
        ),
        (
            f"False alarms: {ranged(found.flagged.at_1, found.flagged_1_interval)} of them are flagged at alpha 1 %, "
            f"{ranged(found.flagged.at_5, found.flagged_5_interval)} at alpha 5 %, n = {found.n:,}."
        ),
    ]


def _worst_shift(found: Shifts, titles: Mapping[str, str]) -> list[str]:
    rows = [(name, row) for name, row in found.rows.items() if row.accuracy_served is not None]
    if not rows:
        return []
    name, row = max(rows, key=lambda item: item[1].at_5 or 0.0)
    return [
        (
            f"Most false alarms among benign changes of the image ({titles.get(name, name)}): "
            f"{ranged(row.at_5, row.at_5_interval)} flagged at alpha 5 %, n = {row.n:,}."
        )
    ]


def _forwards(card: Card) -> list[str]:
    found = card.get("forwards")
    if not found:
        return ["The card does not state what an answer costs in forward passes."]
    text = (
        f"A verdict takes {found['verdict']:g} forward passes of the answering network, with an explanation "
        f"{found['full']:g}; this is counted in the graphs, not measured."
    )
    sentences = [text]
    if content := card.get("benign"):
        benign = Benign.model_validate(content)
        sentences.append(
            "Where neutralisation runs, as on "
            f"{ranged(benign.neutralised, benign.neutralised_interval)} of images that nobody attacked, they are "
            f"taken twice, n = {benign.n:,}."
        )
    if "screen" in found and (content := card.get("cascade")):
        cascade = Cascade.model_validate(content)
        if cascade.n is not None and cascade.screened is not None:
            sentences.append(
                f"With the cascade switched on, {found['screen']:g} forward passes are enough for "
                f"{percent(cascade.screened)} of images that nobody attacked, n = {cascade.n:,}; the card has no "
                "interval for it."
            )
    return sentences
