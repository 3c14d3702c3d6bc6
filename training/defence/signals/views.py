"""Reference views: images that a benign input and its view should agree on (content is left alone)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

SHIFTS = ((1, 1), (-1, -1))


def shift(x: Tensor, dy: int, dx: int) -> Tensor:
    """x (N, C, H, W) moved by whole pixels, borders replicated; positive is down and right."""
    h, w = x.shape[2], x.shape[3]
    padded = F.pad(x, (max(dx, 0), max(-dx, 0), max(dy, 0), max(-dy, 0)), mode="replicate")
    return padded[:, :, max(-dy, 0) : max(-dy, 0) + h, max(-dx, 0) : max(-dx, 0) + w]


def reference_views(x: Tensor) -> Tensor:
    """The two diagonal one-pixel shifts of x (N, C, H, W), stacked along the batch: (2 N, C, H, W), view-major."""
    return torch.cat([shift(x, dy, dx) for dy, dx in SHIFTS])
