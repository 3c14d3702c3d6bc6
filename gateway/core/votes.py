"""Masks that vote on a verdict: an image is unusual where its label is lost under a mask, the more so the surer.

One of the masks hides a square patch of the rule's size wherever it lies, and what is behind it is inpainted from the
other pixels alone. So the label that a patched image gets under that mask, and with which probability, is the unpatched
image's: no patch can lower it. The *objection* to a label is the largest lead of another one, in probability, under any
mask; it becomes a conformal p-value. Whoever patches an image so that a wrong label is served thus meets an objection
of at least `margins` of the unpatched image: where that is beyond the cutoff the patch is flagged, whatever its content
and place. Where the network of small fields votes (`gateway.core.small_field`), windows of its cells take the place of
masks: it cannot see what it leaves out, and one forward pass has the labels without every window. (PatchCleanser's
masks, Xiang et al. 2022; Xiang and Mittal 2021, arXiv 2104.12609, flag every disagreement.)
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
"""Share of a verdict's alpha that is theirs; the rest is that of all other scores."""


@dataclass(frozen=True)
class Voted:
    """The strongest objection to the served label: by how much `index` leads it, in probability, under mask `mask`."""

    objection: float
    index: int
    mask: int
    masks: MaskSet | WindowSet
    p_value: float

    @property
    def box(self) -> tuple[int, int, int, int]:
        """Top, left, height and width of that mask."""
        return self.masks.boxes[self.mask]


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
        self.by = rule.by
        self.masks = hiders(rule, height, width, small_field)
        self._benign = GroupedScores(values, weights, rule.groups)

    def vote(self, index: int, logits: np.ndarray) -> Voted:
        """The vote on label `index`, given the logits (M, K) under each of `masks`."""
        leads, others = objections(np.array([index]), logits[None])
        mask = int(leads[0].argmax())
        objection = float(leads[0, mask])
        p = float(self.p_values(np.array([objection]))[0])
        return Voted(objection, int(others[0, mask]), mask, self.masks, p)

    def p_values(self, objections: np.ndarray) -> np.ndarray:
        """Conformal p-values (N,) of the largest objections (N,)."""
        return self._benign.p_values(objections)

    @property
    def smallest_p(self) -> float:
        """The smallest p-value that an objection can have."""
        return float(self.p_values(np.array([np.inf]))[0])

    def limit(self, p: float) -> float:
        """The objection beyond which, and only beyond which, the p-value is `p` or less; infinite if none is."""
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


def margins(label: np.ndarray, logits: np.ndarray) -> np.ndarray:
    """The least objection (N,) that a patch meets which makes an unpatched image answered otherwise than `label` (N,).

    `logits` (N, M, K) are the unpatched image's under each mask. The maker chooses the label that leads most, and the
    place: where the patch is behind several masks at once the objection is that of the one that leads most, so that
    this is a bound. Negative where the image is answered wrongly under a mask.
    """
    leads, _ = objections(label, logits)
    return np.asarray(-leads.max(1))


def flags_nothing(judged: float, votes: float, cutoff: float) -> bool:
    """Whether no image is flagged at `cutoff` by masks, or none by the others, whose smallest p-values these are."""
    return max(joined(judged, 1.0), joined(1.0, votes)) > cutoff * (1 + 1e-12)


def joined(p: float, votes: float) -> float:
    """The p-value of a verdict whose other scores have `p`, and its masks `votes`: valid whatever they share.

    A budget alpha is divided between the two, `SHARE` of it for the masks (Bonferroni).
    """
    return min(1.0, p / (1 - SHARE), votes / SHARE)
