"""Alignment: the input gradient follows the teacher's saliency (DIGR's "imitate", Xing et al. 2022, arXiv 2205.08685).

mean_b 1 - cos(A(|g_b|), A(P_b)) with g the gradient of the label's log-odds, |.| summed over channels, P the teacher's
perturbation saliency and A the average over the cells of a coarse grid. Like the ratio it is free of the scale of g.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from training.losses.input_gradient import Probe
from training.losses.selective import label_odds
from training.losses.term import Context, MapTerm


class Align(MapTerm):
    """`align_probe` with the teacher's saliency, on the cells of its own grid."""

    def probe(self, context: Context) -> Probe:
        assert context.saliency is not None
        return align_probe(context.y, context.saliency, grid=self.grid)


def align_probe(y: Tensor, saliency: Tensor, *, grid: int) -> Probe:
    """The penalty of images with labels `y` (N,) and saliency (N, H, W) >= 0, compared on `grid` x `grid` cells."""
    wanted = F.adaptive_avg_pool2d(saliency, grid).flatten(1)

    def form(gradient: Tensor) -> Tensor:
        found = F.adaptive_avg_pool2d(gradient.abs().sum(1), grid).flatten(1)
        return (1 - F.cosine_similarity(found, wanted, dim=1, eps=1e-12)).mean()

    return Probe(lambda logits: label_odds(logits, y), form, degree=0)
