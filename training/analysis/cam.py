"""Gradient heat maps of a layer: Grad-CAM, Grad-CAM++, LayerCAM and what the last two differ by (NoiseCAM).

A (N, C, h, w) are a layer's responses and g = dY/dA the gradients of the explained score Y (N,); maps are (N, h, w),
not negative, and not normalised: magnitudes are for statistics, `normalised` is for pictures.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.analysis.responses import responses
from training.util.module_modes import frozen

Score = Literal["logit", "probability"]
Maps = dict[str, dict[str, Tensor]]
ROUNDING = 1e-5


def grad_cam(a: Tensor, g: Tensor) -> Tensor:
    """ReLU(sum_k mean(g_k) A_k) (Selvaraju et al. 2017, arXiv 1610.02391, eq. 1 and 2)."""
    return F.relu((g.mean((2, 3), keepdim=True) * a).sum(1))


def layer_cam(a: Tensor, g: Tensor) -> Tensor:
    """ReLU(sum_k ReLU(g_k) A_k) (Jiang et al. 2021, LayerCAM, IEEE TIP 30, eq. 6 and 7)."""
    return F.relu((F.relu(g) * a).sum(1))


def grad_cam_plus_plus(a: Tensor, g: Tensor) -> Tensor:
    """ReLU(sum_k w_k A_k), w_k the alpha-weighted mean of ReLU(g_k) (Chattopadhay et al. 2018, arXiv 1710.11063)."""
    return F.relu((_plus_plus_weight(a, g) * a).sum(1))


def noise_cam(a: Tensor, g: Tensor, factor: Tensor | None = None) -> Tensor:
    """ReLU(sum_k A_k (factor w_k - ReLU(g_k))): Grad-CAM++ minus LayerCAM (NoiseCAM, arXiv 2303.06151).

    The code that its authors published multiplies the first weight, but not the second, by exp(Y), which swamps the
    difference where Y is a logit: `factor` (N,) is that of a probability, None shares it. Differences within rounding
    count as none: gradients that are constant over space, as at the layer before a global mean, leave nothing else.
    """
    weight = _plus_plus_weight(a, g)
    if factor is not None:
        weight = weight * factor[:, None, None, None]
    difference, size = (a * (weight - F.relu(g))).sum(1), (a.abs() * F.relu(g)).sum(1)
    return F.relu(difference) * (difference > ROUNDING * size)


def _plus_plus_weight(a: Tensor, g: Tensor) -> Tensor:
    """w (N, C, 1, 1). alpha = g^2 / (2 g^2 + g^3 sum A) = 1 / (2 + g sum A) where g > 0, normalised over space.

    Where g <= 0 the weight takes no part, and the denominator could vanish.
    """
    positive = F.relu(g)
    alpha = (g > 0) / (2 + positive * F.relu(a).sum((2, 3), keepdim=True))
    alpha = alpha / alpha.sum((2, 3), keepdim=True).clamp_min(1e-12)
    return (alpha * positive).sum((2, 3), keepdim=True)


METHODS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "grad_cam": grad_cam,
    "grad_cam_plus_plus": grad_cam_plus_plus,
    "layer_cam": layer_cam,
    "noise_cam": noise_cam,
}
TITLES = {
    "grad_cam": "Grad-CAM",
    "grad_cam_plus_plus": "Grad-CAM++",
    "layer_cam": "LayerCAM",
    "noise_cam": "NoiseCAM",
}


def heat_maps(
    network: nn.Module, x: Tensor, label: Tensor, *, score: Score = "logit"
) -> tuple[Tensor, Maps, dict[str, Tensor]]:
    """Logits (N, K), heat maps and responses of every layer for `label` (N,) of pixels x (N, C, H, W) in [0, 1].

    Maps are {layer: {method: (N, h, w)}}, responses {layer: (N, C, h, w)}. With `probability` as the score NoiseCAM has
    its published factor; a sure network's gradients are then next to nothing.
    """
    with frozen(network), torch.enable_grad():
        logits, layers = responses(network, x.detach().requires_grad_(True))
        explained = (logits if score == "logit" else logits.softmax(1)).gather(1, label[:, None])[:, 0]
        gradients = torch.autograd.grad(explained.sum(), list(layers.values()), allow_unused=True)
    factor = explained.detach().exp() if score == "probability" else None
    maps: dict[str, dict[str, Tensor]] = {}
    for (name, response), gradient in zip(layers.items(), gradients, strict=True):
        a = response.detach()
        g = torch.zeros_like(a) if gradient is None else gradient
        maps[name] = {method: cam(a, g) for method, cam in METHODS.items() if method != "noise_cam"}
        maps[name]["noise_cam"] = noise_cam(a, g, factor)
    return logits.detach(), maps, {name: response.detach() for name, response in layers.items()}


def normalised(maps: Tensor) -> Tensor:
    """Maps (N, h, w) scaled by image to [0, 1]; a constant map is all zero."""
    low, high = maps.amin((1, 2), keepdim=True), maps.amax((1, 2), keepdim=True)
    return torch.where(high > low, (maps - low) / (high - low).clamp_min(1e-30), torch.zeros_like(maps))
