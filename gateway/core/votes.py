"""Masks that vote on a verdict: an image is unusual where its label is lost under a mask, the more so the surer.

One of the masks hides a square patch of the rule's size wherever it lies, and what is behind it is inpainted from the
other pixels alone. So the label that a patched image gets under that mask, and with which probability, is the unpatched
image's: no patch can lower it. The *objection* to a label is the largest lead of another one, in probability, under any
mask; it becomes a conformal p-value. Whoever patches an image so that a wrong label is served thus meets an objection
of at least `margins` of the unpatched image: where that is beyond the cutoff the patch is flagged, whatever its content
and place. Where the network of small fields votes (`gateway.core.small_field`), windows of its cells take the place of
masks: it cannot see what it leaves out, and one forward pass has the labels without every window. That network is heard
with nothing left out, too, where the rule says how much more this counts: obstacles of any shape fool it less often
together with the other one than each alone, and clean images do so seldom. (PatchCleanser's masks, Xiang et al. 2022;
Xiang and Mittal 2021, arXiv 2104.12609, flag every disagreement.)
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from gateway.core.grouped import GroupedScores
from gateway.core.masks import MaskSet
from gateway.core.outputs import softmax
from gateway.core.rules import VoteRule
from gateway.core.small_field import SmallFieldSpec, WindowSet

NAME = "mask_votes"
"""What their p-value is called among the evidence of a verdict."""
SHARE = 0.5
"""Share of a verdict's alpha that is theirs, up to `KNEE`; the rest is that of all other scores."""
KNEE = 0.01
"""Beyond this alpha a rule may divide what is left otherwise (`VoteRule.beyond`)."""


@dataclass(frozen=True)
class Voted:
    """The strongest objection to the served label: by how much `index` leads it, in probability, under mask `mask`.

    `mask` is None where it is that of the network of small fields with nothing left out.
    """

    objection: float
    index: int
    mask: int | None
    masks: MaskSet | WindowSet
    p_value: float
    beyond: float = SHARE
    """What masks have of alpha beyond `KNEE`."""

    @property
    def box(self) -> tuple[int, int, int, int]:
        """Top, left, height and width of that mask, or of the image."""
        return (0, 0, self.masks.height, self.masks.width) if self.mask is None else self.masks.boxes[self.mask]


class Votes:
    """The rule of one calibration with its benign objections."""

    def __init__(
        self,
        rule: VoteRule,
        height: int,
        width: int,
        values: np.ndarray,
        weights: np.ndarray,
        small_field: SmallFieldSpec | None = None,
    ) -> None:
        """`values` (n,) ascend, `weights` (n,) are theirs; `height` and `width` are the network's."""
        self.by, self.whole, self.beyond = rule.by, rule.whole, rule.beyond
        self.masks = hiders(rule, height, width, small_field)
        self._benign = GroupedScores(values, weights, rule.groups)

    def vote(self, index: int, logits: np.ndarray, whole: np.ndarray | None = None) -> Voted:
        """The vote on label `index`, given the logits (M, K) under each of `masks`, and those (K,) of the whole image.

        `whole` is the network of small fields'; without it the rule hears of windows alone.
        """
        asked, at_once = np.array([index]), None if whole is None else whole[None]
        heard, others = all_objections(asked, logits[None], at_once, self.whole)
        which = int(heard[0].argmax())
        under_mask = which < len(logits)
        objection = float(heard[0, which])
        if not under_mask and self.whole is not None:
            objection = 1 - (1 - objection) / self.whole
        p = float(self.p_values(heard[0, which : which + 1])[0])
        return Voted(objection, int(others[0, which]), which if under_mask else None, self.masks, p, self.beyond)

    def p_values(self, objections: np.ndarray) -> np.ndarray:
        """Conformal p-values (N,) of the largest objections (N,)."""
        return self._benign.p_values(objections)

    @property
    def smallest_p(self) -> float:
        """The smallest p-value that an objection can have."""
        return float(self.p_values(np.array([np.inf]))[0])

    def limit(self, p: float) -> float:
        """The objection beyond which, and only beyond which, the p-value is `p` or less; infinite if none is.

        Under a mask or without a window, that is: that of the whole image counts more.
        """
        return self._benign.level(p)


def hiders(rule: VoteRule, height: int, width: int, small_field: SmallFieldSpec | None = None) -> MaskSet | WindowSet:
    """What hides a patch by `rule`; `ValueError` where the network of small fields is to vote and there is none."""
    if rule.masks_per_axis is not None:
        return MaskSet(height, width, rule.patch, rule.masks_per_axis)
    if small_field is None:
        raise ValueError("votes are the network of small fields', which the bundle has not")
    return WindowSet(small_field, height, width, rule.patch)


def objections(index: np.ndarray, logits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """By how much (N, M) the best label other than `index` (N,) leads it in probability, and which that is (N, M).

    `logits` (N, M, K) are those under each of M masks. From -1 (all agree) to 1.
    """
    p = softmax(logits)
    own = np.take_along_axis(p, index[:, None, None], axis=2)[..., 0]
    others = p.copy()
    np.put_along_axis(others, index[:, None, None], -np.inf, axis=2)
    return others.max(2) - own, others.argmax(2)


def all_objections(
    index: np.ndarray, logits: np.ndarray, whole: np.ndarray | None, part: float | None
) -> tuple[np.ndarray, np.ndarray]:
    """`objections`, and with both given those of `whole` (N, K) as a last column, of whose lack to 1 `part` counts."""
    leads, others = objections(index, logits)
    if whole is None or part is None:
        return leads, others
    own, labels = objections(index, whole[:, None])
    return np.concatenate([leads, 1 - part * (1 - own)], 1), np.concatenate([others, labels], 1)


def margins(label: np.ndarray, logits: np.ndarray) -> np.ndarray:
    """The least objection (N,) that a patch meets which makes an unpatched image answered otherwise than `label` (N,).

    `logits` (N, M, K) are the unpatched image's under each mask. The maker chooses the label that leads most, and the
    place: where the patch is behind several masks at once the objection is that of the one that leads most, so that
    this is a bound. Negative where the image is answered wrongly under a mask.
    """
    leads, _ = objections(label, logits)
    return np.asarray(-leads.max(1))


def flags_nothing(judged: float, votes: float, cutoff: float, beyond: float = SHARE) -> bool:
    """Whether no image is flagged at `cutoff` by masks, or none by the others, whose smallest p-values these are."""
    return max(joined(judged, 1.0, beyond), joined(1.0, votes, beyond)) > cutoff * (1 + 1e-12)


def joined(p: float, votes: float, beyond: float = SHARE) -> float:
    """The p-value of a verdict whose other scores have `p`, and its masks `votes`: valid whatever they share.

    It is the smallest alpha of which one of the two has no more than its part (Bonferroni): `votes_part` is that of the
    masks, and the rest that of the others.
    """
    return min(1.0, _spent(p, 1 - SHARE, 1 - beyond), _spent(votes, SHARE, beyond))


def votes_part(alpha: float, beyond: float = SHARE) -> float:
    """How much of `alpha` is the masks': half up to `KNEE`, `beyond` of the rest."""
    return SHARE * min(alpha, KNEE) + beyond * max(0.0, alpha - KNEE)


def _spent(p: float, below: float, beyond: float) -> float:
    """The alpha of which `p` is the part of one side."""
    knee = below * KNEE
    return p / below if p <= knee else KNEE + (p - knee) / beyond
