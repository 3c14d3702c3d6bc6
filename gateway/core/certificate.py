"""Certificates against patches: what the answer is under masks of which one must hide any patch of a given size.

`agreed`: the label is the same under every mask. One of the masks hid the whole patch, if there is one, so that the
unpatched image has the label under that mask. `proved`: it is the same under every two masks. Then double masking
(Xiang, Mahloujifar and Mittal 2022, PatchCleanser, Theorem 1) gives the unpatched image that label, too: images that
differ inside one square of that size are one another's neighbours, so that the theorem may be read from the image that
was received. `none` means that neither was shown, and is no sign of an attack. What is behind a mask is inpainted from
the other pixels alone; two masks are inpainted as one.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

import numpy as np

from gateway.core.masks import MaskSet
from gateway.core.small_field import SmallFieldFound

T = TypeVar("T")
By = Literal["masks", "small_field"]
WantedBy = Literal["any", "masks", "small_field"]
Level = Literal["none", "agreed", "proved"]
Wanted = Literal["agreed", "proved"]
RANK: dict[Level, int] = {"none": 0, "agreed": 1, "proved": 2}
LEADS = {"fp32": 1e-3, "fp16": 5e-2}
"""By how much (of logits) a label must lead to count, by precision: more than rounding changes from machine to machine,
or from one batch size to another."""
_CHUNKS = (8, 8, 16, 32)
"""Masks that are asked for at a time: few at first, since most certificates that fail do so at the hardest masks."""


@dataclass(frozen=True)
class CertificateWanted:
    """A certificate for a square patch of side `patch`, tried up to `level`.

    `require`: an answer below that level is refused. `votes`: every mask of the first round is run although one of
    them has failed. `thorough`: so are all masks of both rounds, so that the time discloses nothing. `by`: which
    way of showing it; `any` asks the network of small fields first, where the bundle has one, and then masks.
    """

    masks: MaskSet
    level: Wanted = "proved"
    require: Wanted | None = None
    votes: bool = False
    thorough: bool = False
    by: WantedBy = "any"

    @property
    def forwards(self) -> int:
        """Forward passes at most; where masks follow, that of the network of small fields is not counted."""
        if self.by == "small_field":
            return 1
        return self.masks.forwards if self.level == "proved" else len(self.masks)


@dataclass(frozen=True)
class Vote:
    """The label under one mask of the first round, and by how much (of logits) it leads the next."""

    index: int
    lead: float


@dataclass(frozen=True)
class Certificate:
    """What was shown for the label `index`; `votes` has an entry for each mask, None where it was not run.

    By the network of small fields (`by`) there are no votes, and `masks` states the patch alone.
    """

    level: Level
    index: int
    masks: MaskSet
    tried: Wanted
    forwards: int
    lead: float
    votes: tuple[Vote | None, ...]
    by: By = "masks"

    @property
    def complete(self) -> bool:
        """Whether every mask of the rounds that were to be tried was run."""
        return self.by == "small_field" or self.forwards == (
            self.masks.forwards if self.tried == "proved" else len(self.masks)
        )

    def reaches(self, level: Wanted | None) -> bool:
        """Whether this is at least `level`; always so for None."""
        return level is None or RANK[self.level] >= RANK[level]


def certify(
    index: int, wanted: CertificateWanted, lead: float, first: np.ndarray | None = None
) -> Generator[Sequence[np.ndarray], np.ndarray, Certificate]:
    """The certificate of label `index`: yields masks (H, W) to hide, and is sent the logits (n, K) under each of them.

    A label counts where it leads by `lead`. `first` (H, W) marks pixels whose masks are run first, as where the label
    seems to come from.
    """
    masks = wanted.masks
    singles = masks.singles()
    order = list(range(len(masks)))
    if first is not None:
        order.sort(key=lambda i: -float((singles[i] * first).sum()))
    votes: list[Vote | None] = [None] * len(masks)
    margins = np.full(len(masks), -np.inf)
    forwards, holds = 0, True
    for some in _chunks(order):
        if not (holds or wanted.votes or wanted.thorough):
            break
        logits = yield [singles[i] for i in some]
        forwards += len(some)
        for i, row in zip(some, logits, strict=True):
            votes[i], margins[i] = _vote(row), _margin(row, index)
        holds = holds and bool((margins[some] >= lead).all())
    level: Level = "agreed" if holds else "none"
    if wanted.level == "proved" and (holds or wanted.thorough):
        # Where two masks that were each survived narrowly meet, the label falls first.
        pairs = sorted(masks.pairs, key=lambda pair: float(margins[pair[0]] + margins[pair[1]]))
        for chunk in _chunks(pairs):
            if not (holds or wanted.thorough):
                break
            logits = yield [masks.union(pair) for pair in chunk]
            forwards += len(chunk)
            holds = holds and all(_margin(row, index) >= lead for row in logits)
        level = "proved" if holds else level
    return Certificate(level, index, masks, wanted.level, forwards, lead, tuple(votes))


def certificate_of(found: SmallFieldFound, index: int, wanted: CertificateWanted, lead: float) -> Certificate:
    """What the network of small fields shows for the label `index`, in its one forward pass."""
    level: Level = "none"
    if found.index == index:
        level = "proved" if found.two >= lead else "agreed" if found.one >= lead else "none"
    level = min(level, wanted.level, key=RANK.__getitem__)
    return Certificate(level, index, wanted.masks, wanted.level, 1, lead, (), by="small_field")


def _vote(logits: np.ndarray) -> Vote:
    best = int(np.argmax(logits))
    return Vote(best, _margin(logits, best))


def _margin(logits: np.ndarray, index: int) -> float:
    """By how much `index` leads every other of logits (K,); negative where it does not."""
    others = np.delete(logits.astype(np.float64), index)
    return float(logits[index] - others.max())


def _chunks(items: Sequence[T]) -> Iterator[list[T]]:
    """`items` in lists of growing sizes."""
    at, turn = 0, 0
    while at < len(items):
        size = _CHUNKS[min(turn, len(_CHUNKS) - 1)]
        yield list(items[at : at + size])
        at, turn = at + size, turn + 1
