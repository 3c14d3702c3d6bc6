"""Selective input-gradient regularisation (SIGR of J-SIGR, Liu et al. 2022, arXiv 2207.13036; DIGR, arXiv 2205.08685).

M (N, H, W) in [0, 1] are the important pixels, 1 where a gradient may be, from the perturbation saliency of a frozen
teacher (`training.losses.perturbation_saliency`). Two forms, means over images:

- absolute, as in the papers: ||(1 - M) g||^2 with g = d log p_y / dx. It shrinks the gradient everywhere.
- ratio: ||(1 - M) g||^2 / ||g||^2, the denominator live: only moving the gradient into M lowers it. It is free of the
  scale of g, which is therefore the gradient of the label's log-odds: of the same direction, and not vanishing where
  the network is sure. d ratio = 2 <(1 - M)^2 g - ratio g, dg> / ||g||^2: both norms move along one direction.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from training.losses.input_gradient import Probe, squared_norm
from training.util.signatures import Predict

TINY = 1e-12


def selective_probe(y: Tensor, important: Tensor, *, form: Literal["absolute", "ratio"] = "absolute") -> Probe:
    """The penalty of images with labels `y` (N,) and important pixels M (N, H, W)."""

    def outside(gradient: Tensor) -> Tensor:
        return squared_norm((1 - important[:, None]) * gradient)

    if form == "absolute":
        return Probe(lambda logits: label_score(logits, y), lambda gradient: outside(gradient).mean())
    return Probe(
        lambda logits: label_odds(logits, y),
        lambda gradient: (outside(gradient) / (squared_norm(gradient) + TINY)).mean(),
        degree=0,
    )


def label_score(logits: Tensor, y: Tensor) -> Tensor:
    """log softmax of the label, (N,)."""
    return F.log_softmax(logits, 1).gather(1, y[:, None])[:, 0]


def label_odds(logits: Tensor, y: Tensor) -> Tensor:
    """Log-odds of the label, log p_y / (1 - p_y), (N,)."""
    others = logits.scatter(1, y[:, None], float("-inf"))
    return logits.gather(1, y[:, None])[:, 0] - others.logsumexp(1)


def off_mask_share(predict: Predict, x: Tensor, y: Tensor, important: Tensor) -> Tensor:
    """||(1 - M) g|| / ||g|| of each image, (N,): how much of the label's gradient lies outside the important pixels."""
    x = x.detach().requires_grad_(True)
    (gradient,) = torch.autograd.grad(label_score(predict(x), y).sum(), x)
    outside = ((1 - important[:, None]) * gradient).flatten(1).norm(dim=1)
    return outside / gradient.flatten(1).norm(dim=1).clamp_min(1e-12)
