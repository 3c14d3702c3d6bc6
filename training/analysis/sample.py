"""The images that an analysis uses."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from training.data.dataset import Split
from training.imaging.pixels import to_tensor


def sample(split: Split, count: int | None, *, seed: int) -> tuple[Tensor, Tensor, np.ndarray]:
    """`count` images of `split` (None: all) drawn by `seed`: pixels (N, C, H, W), labels (N,), groups (N,)."""
    index = np.random.default_rng(seed).permutation(len(split))[:count]
    some = split.take(np.sort(index))
    return to_tensor(some.x), torch.from_numpy(some.y), some.group
