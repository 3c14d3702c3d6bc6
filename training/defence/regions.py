"""Region of importance (after Chattopadhyay et al. 2020, arXiv 2011.10794): where the network finds the label.

Where the companion, or without one the network itself, looks for the served label (class activation map, Zhou et al.
2016, arXiv 1512.04150; Grad-CAM for a head that is not linear in spatial means). The region of attack is a localiser's
(`training.defence.localisers`).
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from training.imaging.resize import resize_bilinear

ROI_LEVEL = 0.4


def class_activation_map(features: Tensor, weight: Tensor, one_hot: Tensor, size: tuple[int, int]) -> Tensor:
    """CAM (N, H, W) >= 0 of last features (N, C, h, w), head weight (K, C) and the marked class one_hot (N, K)."""
    channel_weight = one_hot @ weight
    cam = (features * channel_weight[:, :, None, None]).sum(1, keepdim=True)
    return resize_bilinear(F.relu(cam), size)[:, 0]


def gradient_activation_map(features: Tensor, gradient: Tensor, size: tuple[int, int]) -> Tensor:
    """Grad-CAM (N, H, W) >= 0 of features and the label's gradient at them, both (N, C, h, w).

    Channels weigh as much as their gradient's sum (Selvaraju et al. 2017, arXiv 1610.02391), which for a linear head on
    spatial means is the class activation map.
    """
    cam = (features * gradient.sum((2, 3), keepdim=True)).sum(1, keepdim=True)
    return resize_bilinear(F.relu(cam), size)[:, 0]


def region_of_importance(cam: Tensor, level: float = ROI_LEVEL) -> Tensor:
    """{0, 1} (N, H, W): pixels with at least `level` of the map's own maximum; empty where the map is zero."""
    peak = cam.amax((1, 2), keepdim=True)
    return ((cam >= level * peak) & (peak > 0)).to(cam.dtype)
