"""From stored images to what networks read."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def to_tensor(x: np.ndarray, device: torch.device | None = None) -> Tensor:
    """uint8 (N, H, W, C) -> float32 (N, C, H, W) in [0, 1], on `device` (the CPU); bytes are what is moved there."""
    stored = torch.from_numpy(np.ascontiguousarray(x)).to(device)
    return stored.permute(0, 3, 1, 2).float().div(255).contiguous()
