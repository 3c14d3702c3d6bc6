"""How an attacker exploits neutralisation: hinges of the second call, differentiated through its hard mask.

The region is chosen by an arg max, which has no gradient. Forwards the hard mask is used as it is; backwards the
localiser's soft one (BPDA: Athalye et al. 2018, arXiv 1802.00420), so that an attacker learns how to move it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gateway.core.manifest import Recovery
from gateway.core.verdict import Fusion
from training.attacks.conditions import Conditions, evidence, says
from training.attacks.joint_run import Afterwards, Seen
from training.defence.graph import DefenceGraph
from training.defence.localisers.localiser import Localiser
from training.imaging.inpaint import inpaint

_CLEARLY = 0.1  # deviations beyond the threshold at which a second answer is served


def neutralised(images: Tensor, localiser: Localiser) -> Tensor:
    """Images (M, C, H, W) with their region of attack inpainted, as the gateway does it while the gate is up.

    Differentiable in `images`, by way of the pixels that stay and of the window's place.
    """
    hard, _ = localiser.locate(images)
    filled = inpaint(images, hard.detach())
    soft = localiser.soft(images)[:, None]
    return filled + (filled - images).detach() * (soft - soft.detach())


def still_wrong(recovery: Recovery | None) -> Afterwards:
    """Of an image whose first answer is the target: so is the second one, or it isn't served."""

    def afterwards(defence: DefenceGraph, images: Tensor, seen: Seen, target: Tensor, _label: Tensor) -> list[Tensor]:
        if recovery is None:
            return []
        logits = defence.network(neutralised(images, defence.localiser))
        served = _served(defence.localiser, recovery, images, seen, logits)
        return [torch.minimum(says(logits, target), (served + _CLEARLY).relu())]

    return afterwards


def gated(fusion: Fusion, level: float) -> Conditions:
    """The gate is raised: T is at most `level`, by the fused statistic or by the guard, whichever is nearer."""
    statistic, (limit, objection) = evidence(fusion.components, fusion.columns), fusion.limits(level)

    def conditions(_logits: Tensor, _companion: Tensor, scores: Tensor, _target: Tensor) -> list[Tensor]:
        hinge = (limit + 1 - statistic(scores)).relu()
        if fusion.guard is not None:
            hinge = torch.minimum(hinge, (objection + 0.1 - scores[:, fusion.objecting]).relu())
        return [hinge]

    return conditions


def harm(recovery: Recovery | None) -> Afterwards:
    """Neutralisation does harm: the first answer is right, the second is the target and is served.

    To be used with the conditions `gated`.
    """

    def afterwards(defence: DefenceGraph, images: Tensor, seen: Seen, target: Tensor, label: Tensor) -> list[Tensor]:
        logits = defence.network(neutralised(images, defence.localiser))
        hinges = [says(seen.logits, label), says(logits, target)]
        if recovery is None:
            return hinges
        return [*hinges, (_CLEARLY - _served(defence.localiser, recovery, images, seen, logits)).relu()]

    return afterwards


def _served(localiser: Localiser, recovery: Recovery, images: Tensor, seen: Seen, logits: Tensor) -> Tensor:
    """How far (M,) the second answers `logits` (M, K) are above the threshold at which they are served."""
    best, labels = logits.topk(2, 1)
    of_both = seen.companion.gather(1, torch.stack([labels[:, 0], seen.logits.argmax(1)], 1))
    strength = recovery.strength(localiser.locate(images)[1], best[:, 0] - best[:, 1], of_both[:, 0] - of_both[:, 1])
    return strength - recovery.threshold
