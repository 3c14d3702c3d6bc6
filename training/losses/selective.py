"""Selective input-gradient regularisation (SIGR of J-SIGR, Liu et al. 2022, arXiv 2207.13036; DIGR, arXiv 2205.08685).

mean_b || (1 - M_b) * d s_y(x_b) / dx ||_2^2 with s_y the log-probability of the label and M the important pixels, taken
from the perturbation saliency of a frozen teacher (`training.losses.perturbation_saliency`).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from training.losses.jacobian import Predict, step_along


def label_score(logits: Tensor, y: Tensor) -> Tensor:
    """log softmax of the label, (N,)."""
    return F.log_softmax(logits, 1).gather(1, y[:, None])[:, 0]


def selective_penalty(predict: Predict, x: Tensor, y: Tensor, important: Tensor) -> Tensor:
    """The penalty (scalar) by exact double backprop; `important` is M (N, H, W) in [0, 1]: where a gradient may be."""
    x = x.detach().requires_grad_(True)
    (gradient,) = torch.autograd.grad(label_score(predict(x), y).sum(), x, create_graph=True)
    return ((1 - important[:, None]) * gradient).flatten(1).pow(2).sum(1).mean()


def selective_penalty_fd(predict: Predict, x: Tensor, y: Tensor, important: Tensor, *, h: float = 0.05) -> Tensor:
    """The penalty by a finite difference of length `h` (L2, pixels of [0, 1]) along the masked gradient."""
    x = x.detach().requires_grad_(True)
    score = label_score(predict(x), y)
    (gradient,) = torch.autograd.grad(score.sum(), x, retain_graph=True)
    masked = (1 - important[:, None]) * gradient
    # Where the mask leaves nothing there is no direction; the step is zero and so is the slope.
    return ((label_score(predict(step_along(x, masked, h)), y) - score) / h).pow(2).mean()


def off_mask_share(predict: Predict, x: Tensor, y: Tensor, important: Tensor) -> Tensor:
    """||(1 - M) g|| / ||g|| of each image, (N,): how much of the label's gradient lies outside the important pixels."""
    x = x.detach().requires_grad_(True)
    (gradient,) = torch.autograd.grad(label_score(predict(x), y).sum(), x)
    outside = ((1 - important[:, None]) * gradient).flatten(1).norm(dim=1)
    return outside / gradient.flatten(1).norm(dim=1).clamp_min(1e-12)
