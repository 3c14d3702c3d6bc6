"""What an attacker makes of neutralisation: hinges of the second call, differentiated through its hard mask.

The window is chosen by an arg max, which has no gradient. Forwards the hard mask is used as it is; backwards the mask
is a softmax over all windows (BPDA: Athalye et al. 2018, arXiv 1802.00420), so that an attacker learns how to move it.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from gateway.verdict import Fusion
from training.attacks.joint import Afterwards, Conditions, Seen, evidence, look, says, unobjected
from training.defence.constants import middle_tap
from training.defence.graph import DefenceGraph
from training.defence.inpaint import inpaint
from training.defence.regions import attack_maps, standardised, window_side

_TEMPERATURE = 0.25  # of the windows' scores, which are sums of two z-scores


def neutralised(defence: DefenceGraph, images: Tensor, taps: dict[str, Tensor]) -> Tensor:
    """Images (M, C, H, W) with their region of attack inpainted, as the gateway does it while the gate is up.

    Differentiable in `images`, by way of the pixels that stay and of the window's place.
    """
    hard, _ = defence.region_of_attack(images, taps)
    filled = inpaint(images, hard.detach())
    soft = soft_window(defence, images, taps)[:, None]
    return filled + (filled - images).detach() * (soft - soft.detach())


def soft_window(defence: DefenceGraph, images: Tensor, taps: dict[str, Tensor]) -> Tensor:
    """The probability (M, H, W) of each pixel to be in the window, were one drawn by a softmax of their scores."""
    side = window_side(images.shape[2], images.shape[3])
    energy, norm = attack_maps(images, taps[middle_tap(defence.network)], side)
    score = standardised(energy) + standardised(norm)
    share = (score.flatten(1) / _TEMPERATURE).softmax(1).view_as(score)
    return F.avg_pool2d(F.pad(share[:, None], (side - 1,) * 4), side, stride=1, divisor_override=1)[:, 0]


def still_wrong(fusion: Fusion, level: float) -> Afterwards:
    """Neutralised, the image is still answered with the target, and the second call stays above `level` too.

    `level` is that of the gate: below it the second answer would not be served.
    """
    statistic, (limit, objection) = evidence(fusion.components, fusion.columns), fusion.limits(level)

    def afterwards(defence: DefenceGraph, images: Tensor, seen: Seen, target: Tensor, _label: Tensor) -> list[Tensor]:
        second = look(defence, neutralised(defence, images, seen.taps))
        hinges = [says(second.logits, target), (statistic(second.scores) - limit + 1).relu()]
        if fusion.guard is not None:
            told = second.scores[:, fusion.objecting]
            hinges.append(unobjected(fusion.guard.score, objection, second.logits, second.companion, told, target))
        return hinges

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


def harm(fusion: Fusion, level: float) -> Afterwards:
    """Neutralisation does harm: the first answer is right, the second is the target and would be served.

    To be used with the conditions `gated(fusion, level)`, `level` being the gate's.
    """
    wrong = still_wrong(fusion, level)

    def afterwards(defence: DefenceGraph, images: Tensor, seen: Seen, target: Tensor, label: Tensor) -> list[Tensor]:
        return [says(seen.logits, label), *wrong(defence, images, seen, target, label)]

    return afterwards
