"""From stored images to what networks read."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def to_tensor(x: np.ndarray) -> Tensor:
    """uint8 (N, H, W, C) -> float32 (N, C, H, W) in [0, 1]."""
    return torch.from_numpy(np.ascontiguousarray(x)).permute(0, 3, 1, 2).float().div(255).contiguous()
