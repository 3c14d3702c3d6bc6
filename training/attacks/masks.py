"""Greedy worst masks: the two masks of a certificate's set, inpainted, under which an image is answered worst.

Saha et al. 2023 (arXiv 2306.12610, "greedy cutout"): the worst single mask first, then the worst one together with it,
in place of a search through all pairs. Networks that are trained on such images keep their labels under more masks.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from gateway.core.masks import MaskSet
from training.imaging.inpaint import inpaint
from training.util.signatures import Predict


@torch.no_grad()
def worst_pairs(
    predict: Predict,
    x: Tensor,
    y: Tensor,
    masks: MaskSet,
    *,
    candidates: int | None = None,
    generator: Generator | None = None,
) -> Tensor:
    """What the greedily worst pair of masks hides (N, H, W), in {0, 1}, by the cross-entropy of labels `y` (N,).

    `x` (N, C, H, W) in [0, 1] at the size of `masks`. Takes two forward passes a mask; with `candidates` it chooses
    from that many, drawn anew for each of the two masks, and takes as many passes less.
    """
    singles = torch.from_numpy(masks.singles().copy()).to(x)
    hidden = torch.zeros_like(x[:, 0])
    for _ in range(2):
        drawn = (
            singles if candidates is None else singles[torch.randperm(len(singles), generator=generator)[:candidates]]
        )
        losses = torch.stack([_loss(predict, x, y, torch.maximum(hidden, mask)) for mask in drawn])
        hidden = torch.maximum(hidden, drawn[losses.argmax(0)])
    return hidden


def _loss(predict: Predict, x: Tensor, y: Tensor, mask: Tensor) -> Tensor:
    return F.cross_entropy(predict(inpaint(x, mask)).float(), y, reduction="none")


def with_worst_pairs(
    predict: Predict,
    x: Tensor,
    y: Tensor,
    masks: MaskSet,
    *,
    rows: Tensor,
    generator: Generator,
    candidates: int | None = None,
) -> Tensor:
    """`x` with the images of `rows` (M,) behind their worst pairs; the others as they are."""
    made = x.clone()
    hidden = worst_pairs(predict, x[rows], y[rows], masks, candidates=candidates, generator=generator)
    made[rows] = inpaint(x[rows], hidden)
    return made
