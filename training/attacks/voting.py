"""A maker of patches who knows that masks vote: the places and labels that they object to least, and their hinge.

Under a mask that hides the patch the maker has no say (`gateway.core.votes`), so that place and label are chosen by
what is answered there; under all the others the patch must keep its label.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from gateway.core.masks import MaskSet
from gateway.core.outputs import softmax
from gateway.core.small_field import TEMPERATURE, WindowSet, windows_for
from training.attacks.joint_run import Afterwards, Seen
from training.attacks.patch import Kind, Patches, random_patches
from training.defence.graph import DefenceGraph
from training.imaging.inpaint import inpaint
from training.models.small_field import SmallField

_CLEARLY = 0.02  # of probability


def least_objections(logits: np.ndarray, label: np.ndarray, masks: MaskSet | WindowSet, side: int) -> np.ndarray:
    """The objection (N, P, K) that a patch of `side` at each of P places meets at least if its label is each of K.

    Of the masks that hide it there, from the unpatched images' `logits` (N, M, K); infinite for the true `label` (N,).
    Places are in rows, from the upper left corner.
    """
    p = softmax(logits)
    order = np.sort(p, axis=2)
    best, second = order[..., -1:], order[..., -2:-1]
    leads = np.where(p == best, second, best) - p  # (N, M, K)
    hidden = masks.hides(side) if isinstance(masks, WindowSet) else _behind(masks, side)
    found = np.empty((len(logits), len(hidden), logits.shape[2]))
    for number, hides in enumerate(hidden):
        found[:, number] = leads[:, hides].max(1) if hides.any() else -1.0
    found[np.arange(len(label)), :, label] = np.inf
    return found


def _behind(masks: MaskSet, side: int) -> np.ndarray:
    """Which masks hide a square of `side` at each place (P, M)."""
    top, left, height, width = np.array(masks.boxes).T
    places = [(y, x) for y in range(masks.height - side + 1) for x in range(masks.width - side + 1)]
    rows = [(top <= y) & (left <= x) & (y + side <= top + height) & (x + side <= left + width) for y, x in places]
    return np.stack(rows)


class Tolerated:
    """Aims (`training.attacks.joint_patch`) that the masks tolerate: those to which they object by less than `limit`.

    Classes with such a place come first. A patch lies at one of these places, drawn at random; where a class has none,
    at the one that is objected to least.
    """

    def __init__(
        self,
        x: Tensor,
        least: np.ndarray,
        limit: float,
        *,
        width: int,
        side: int,
        kind: Kind,
        generator: torch.Generator | None,
    ) -> None:
        """`least` (N, P, K) are the `least_objections` for images `x` (N, C, H, W) of that `width`."""
        self._x, self._across, self._side, self._kind = x, width - side + 1, side, kind
        self._least = torch.from_numpy(least).to(x.device)
        self._tolerated = self._least < limit
        self._generator = generator

    def order(self, ranked: Tensor) -> Tensor:
        none = ~self._tolerated.any(1).gather(1, ranked)
        return ranked.gather(1, none.long().argsort(dim=1, stable=True))

    def draw(self, target: Tensor) -> Patches:
        drawn = random_patches(self._x, self._side, self._kind, self._generator)
        rows = torch.arange(len(target), device=target.device)
        tolerated, least = self._tolerated[rows, :, target], self._least[rows, :, target]
        chance = torch.rand(tolerated.shape, generator=self._generator).to(tolerated.device)
        place = torch.where(tolerated.any(1), (tolerated * (1 + chance)).argmax(1), least.argmin(1))
        return Patches(drawn.colours, place // self._across, place % self._across, self._side)


def outvoted(masks: MaskSet, limit: float) -> Afterwards:
    """No mask objects to the target by `limit` (of probability) or more."""
    singles = torch.from_numpy(masks.singles().copy())

    def afterwards(defence: DefenceGraph, images: Tensor, _seen: Seen, target: Tensor, _label: Tensor) -> list[Tensor]:
        n, m = len(images), len(singles)
        hidden = singles.to(images).repeat(n, 1, 1)
        logits = defence.network(inpaint(images.repeat_interleave(m, 0), hidden)).float()
        return [_objected(logits.unflatten(0, (n, m)), target, limit).sum(1)]

    return afterwards


def outvoted_by(network: SmallField, windows: WindowSet, limit: float, whole: float | None) -> Afterwards:
    """The network of small fields objects to the target without no window by `limit` or more.

    With `whole` (of `gateway.core.rules.VoteRule`) nor does it with nothing left out, by the lower limit of that.
    """
    found = windows_for(windows.spec, windows.height, windows.width, windows.patch)
    left_out = torch.from_numpy(found.windows)

    def afterwards(_defence: DefenceGraph, images: Tensor, _seen: Seen, target: Tensor, _label: Tensor) -> list[Tensor]:
        cells = network.cells(images).float().flatten(2)
        total = cells.sum(2)[..., None]
        without = (total - cells @ left_out.to(cells)) / TEMPERATURE
        hinges = _objected(without.transpose(1, 2), target, limit).sum(1)
        if whole is not None:
            lower = 1 - (1 - limit) / whole
            hinges = hinges + _objected((total / TEMPERATURE).transpose(1, 2), target, lower).sum(1)
        return [hinges]

    return afterwards


def _objected(logits: Tensor, target: Tensor, limit: float) -> Tensor:
    """Hinges (N, M): by how much more than `limit` another label leads `target` (N,) in probability.

    The gradient is that of the lead in logits, which does not vanish where the network is sure.
    """
    p, aim = logits.softmax(2), target[:, None, None].expand(-1, logits.shape[1], 1)
    excess = _lead(p, aim) - limit + _CLEARLY
    lead = _lead(logits, aim)
    return torch.where(excess > 0, excess.detach() + lead - lead.detach(), torch.zeros_like(excess))


def _lead(values: Tensor, aim: Tensor) -> Tensor:
    """By how much (N, M) the best other entry of the last axis leads that at `aim` (N, M, 1)."""
    return values.scatter(2, aim, -torch.inf).amax(2) - values.gather(2, aim)[..., 0]
