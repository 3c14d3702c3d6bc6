"""Region of importance and region of attack (after Chattopadhyay et al. 2020, arXiv 2011.10794).

RoI: where the companion, or without one the network itself, looks for the served label (class activation map, Zhou et
al. 2016, arXiv 1512.04150; Grad-CAM for a head that is not linear in spatial means). RoA: the square window where the
answering network's middle features and the image's high-pass energy concentrate; adversarial patches are both strong
and busy.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from training.defence.resize import box_mean, resize_bilinear

ROI_LEVEL = 0.4
WINDOW_SHARE = 0.28


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


def attack_maps(pixels: Tensor, features: Tensor, window: int) -> tuple[Tensor, Tensor]:
    """Means over every window position (N, P, Q) of the high-pass energy and of the feature norm.

    pixels (N, C, H, W), features (N, c, h, w) of a middle layer; P = H - window + 1, Q = W - window + 1.
    """
    energy = (pixels - box_mean(F.pad(pixels, (1, 1, 1, 1), mode="replicate"), 3)).pow(2).sum(1, keepdim=True)
    norm = (features.pow(2).sum(1, keepdim=True) + 1e-12).sqrt()
    norm = resize_bilinear(norm, (pixels.shape[2], pixels.shape[3]))
    pooled = box_mean(torch.cat([energy, norm], 1), window)
    return pooled[:, 0], pooled[:, 1]


def standardised(maps: Tensor) -> Tensor:
    """Per-image z-scores over the positions of maps (N, P, Q)."""
    centred = maps - maps.mean((1, 2), keepdim=True)
    return centred / (centred.pow(2).mean((1, 2), keepdim=True).sqrt() + 1e-6)


def best_window(energy: Tensor, norm: Tensor) -> Tensor:
    """One-hot (N, P * Q) of the window with the largest sum of standardised energy and feature norm (N, P, Q)."""
    score = (standardised(energy) + standardised(norm)).flatten(1)
    return (torch.arange(score.shape[1], device=score.device) == score.argmax(1, keepdim=True)).to(score.dtype)


def window_mask(one_hot: Tensor, positions: tuple[int, int], window: int) -> Tensor:
    """{0, 1} (N, H, W) of windows marked by one_hot (N, P * Q): the window's pixels are 1."""
    corner = one_hot.reshape(-1, 1, *positions)
    border = window - 1
    rows = F.max_pool2d(F.pad(corner, (0, 0, border, border)), (window, 1), stride=1)
    return F.max_pool2d(F.pad(rows, (border, border, 0, 0)), (1, window), stride=1)[:, 0]


def window_side(height: int, width: int) -> int:
    """Side of the RoA window in pixels: 28 % of the image's shorter side (9 at 32, 63 at 224)."""
    return max(3, round(WINDOW_SHARE * min(height, width)))
