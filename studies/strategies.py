"""Ways to answer an image on which a patch is suspected: which windows are hidden, and which of the answers counts."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from studies.localisers import (
    Entropy,
    TextureColourEntropy,
    UsualSide,
    Windows,
    agreed_window,
    agreement,
    averaged,
    candidates,
    energy_and_features,
    hidden,
)
from training.defence.constants import middle_tap
from training.defence.graph import DefenceGraph
from training.defence.localisers.texture_colour import TextureColour
from training.defence.localisers.windows import window_sides
from training.models.network import Network

USUAL_SHARE = 0.28
COUNT = 6
OF_EACH = 3
LESS = 0.25
BATCH = 64


@dataclass(frozen=True)
class Answers:
    """A strategy's answers to N images.

    Its first window (N, H, W), how far that stands out (N,), and scores of labels (N, K), logarithms up to a constant.
    """

    window: Tensor
    stands_out: Tensor
    scores: Tensor

    @property
    def label(self) -> np.ndarray:
        return self.scores.argmax(1).cpu().numpy()

    def answering(self, probabilities: Tensor) -> Answers:
        """The same windows, other answers: probabilities (N, K)."""
        return replace(self, scores=probabilities.clamp_min(1e-12).log())


PLAIN, MEAN = "texture + colour", "texture + colour, averaged where networks agree"
CONTRASTED = ", less the first answer"
FORWARDS = {
    "random window": 1,
    "energy + features": 1,
    "energy + features, four sides averaged": 4,
    "entropy": 1,
    "texture + colour, one side": 1,
    PLAIN: 1,
    PLAIN + CONTRASTED: 1,
    "texture + colour + entropy": 1,
    "companion disagreement, all maps": 2 * 3 * OF_EACH,
    "companion disagreement, texture + colour": 2 * COUNT,
    "texture + colour, averaged": COUNT,
    MEAN: 2 * COUNT,
    MEAN + CONTRASTED: 2 * COUNT,
}
"""Strategies, with the forwards that a gated image costs until its answer is known."""


@torch.no_grad()
def strategies(
    defence: DefenceGraph, x: Tensor, logits: Tensor, generator: torch.Generator | None = None
) -> dict[str, Answers]:
    """What every strategy (`FORWARDS`) answers to pixels x (N, C, H, W) that were first answered `logits` (N, K)."""
    network, companion = defence.network, defence.companion
    assert companion is not None
    size = (x.shape[2], x.shape[3])
    (usual,), sides = window_sides(*size, shares=(USUAL_SHARE,)), window_sides(*size)
    taps = network.taps(x)[1]
    served = TextureColour()
    roa = energy_and_features(x, taps[middle_tap(network)], sorted({usual, *sides}))
    lists = {
        "random window": _random_windows(len(x), size, usual, generator),
        "energy + features": candidates({usual: roa[usual]}, OF_EACH),
        "energy + features, four sides averaged": Windows.joined([candidates({side: roa[side]}, 1) for side in sides]),
        "entropy": candidates(Entropy().window_scores(x), OF_EACH),
        "texture + colour, one side": candidates(UsualSide(served, USUAL_SHARE).window_scores(x), 1),
        PLAIN: candidates(served.window_scores(x), COUNT),
        "texture + colour + entropy": candidates(TextureColourEntropy().window_scores(x), 1),
    }
    lists["all maps"] = Windows.joined([lists[name].first(OF_EACH) for name in ("energy + features", "entropy", PLAIN)])
    own = {name: _asked(network, x, windows) for name, windows in lists.items()}
    other = {name: _asked(companion, x, lists[name]) for name in ("all maps", PLAIN)}

    found = {
        name: Answers(windows.masks(size)[:, 0], windows.score[:, 0], own[name][:, 0].log_softmax(1))
        for name, windows in lists.items()
    }
    for name in other:
        column = agreed_window(own[name], other[name])[:, None]
        windows = lists[name].take(column)
        scores = own[name].take_along_dim(column[..., None], 1)[:, 0].log_softmax(1)
        found[f"companion disagreement, {name}"] = Answers(windows.masks(size)[:, 0], windows.score[:, 0], scores)
    del found["all maps"]
    weight = lists[PLAIN].score.softmax(1)
    trust = weight * (agreement(own[PLAIN], other[PLAIN]) + 1e-3)
    found["texture + colour, averaged"] = found[PLAIN].answering(averaged(own[PLAIN], weight))
    found[MEAN] = found[PLAIN].answering(averaged(own[PLAIN], trust))
    for name in (PLAIN, MEAN):
        first = LESS * logits.log_softmax(1)
        found[name + CONTRASTED] = replace(found[name], scores=found[name].scores - first)
    sides_mean = averaged(own["energy + features, four sides averaged"], torch.ones(len(x), len(sides)).to(x))
    found["energy + features, four sides averaged"] = found["energy + features"].answering(sides_mean)
    return found


def _asked(network: Network, x: Tensor, windows: Windows) -> Tensor:
    """Logits (N, K, C) of x (N, ...) without each of its K windows."""
    return torch.cat([network(part) for part in hidden(x, windows).split(BATCH)]).unflatten(0, windows.top.shape)


def _random_windows(n: int, size: tuple[int, int], side: int, generator: torch.Generator | None) -> Windows:
    top, left = (torch.randint(0, length - side + 1, (n, 1), generator=generator) for length in size)
    return Windows(top, left, torch.full_like(top, side), torch.zeros(n, 1))
