"""Saliency: which pixels the served label hangs on, from one input gradient of the margin.

Gradient times (input minus its blur) is the first-order change of the margin when a pixel's detail is removed (the baseline
of Kindermans et al. 2016 and Sundararajan et al. 2017 taken as the blurred image). It is smoothed and scaled to [0, 1].
"""

from __future__ import annotations

from torch import Tensor

from training.losses.perturbation_saliency import gaussian_blur

SMOOTHING = 1.0


def saliency_map(pixels: Tensor, gradient: Tensor) -> Tensor:
    """Saliency (N, H, W) in [0, 1] of pixels (N, C, H, W) and the margin's gradient; all zero where the gradient is."""
    attribution = gradient.pow(2).sum(1, keepdim=True).add(1e-24).sqrt()
    smooth = gaussian_blur(attribution, SMOOTHING)[:, 0]
    return smooth / smooth.amax((1, 2), keepdim=True).clamp_min(1e-12)

