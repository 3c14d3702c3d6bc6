"""Maps of the pixels that an answer depends on: the one that a bundle serves, and others to compare with."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from training.defence.constants import last_tap
from training.defence.regions import gradient_activation_map
from training.defence.saliency import saliency_map
from training.defence.signals.margins import one_hot_margin
from training.errors import TrainingError
from training.imaging.resize import resize_bilinear
from training.models.network import Network
from training.util.module_modes import frozen

BATCH = 50
IG_STEPS = 50
Explain = Callable[[Network, Tensor, Tensor], Tensor]


def margin_saliency(network: Network, x: Tensor, label: Tensor) -> Tensor:
    """What a bundle serves, (N, H, W): `training.defence.saliency` of the margin's gradient, for any label (N,)."""
    with frozen(network), torch.enable_grad():
        leaf = x.detach().requires_grad_(True)
        logits = network(leaf)
        one_hot = nn.functional.one_hot(label, logits.shape[1]).to(logits)
        (gradient,) = torch.autograd.grad(one_hot_margin(logits, one_hot).sum(), leaf)
    return saliency_map(x, gradient)


def last_layer_map(network: Network, x: Tensor, label: Tensor) -> Tensor:
    """Grad-CAM (N, H, W) at the last tapped layer; the class activation map where a linear head reads its means."""
    with frozen(network), torch.enable_grad():
        logits, taps = network.taps(x.detach().requires_grad_(True))
        last = taps[last_tap(network)]
        (gradient,) = torch.autograd.grad(logits.gather(1, label[:, None]).sum(), last)
    return gradient_activation_map(last.detach(), gradient, (x.shape[2], x.shape[3]))


def integrated_gradients(network: Network, x: Tensor, label: Tensor) -> Tensor:
    """Captum's integrated gradients (Sundararajan et al. 2017, arXiv 1703.01365), 50 steps from black, (N, H, W)."""
    with frozen(network):
        method = _captum().IntegratedGradients(network)
        return method.attribute(x, target=label, n_steps=IG_STEPS, internal_batch_size=256).sum(1).detach()


def captum_grad_cam(network: Network, x: Tensor, label: Tensor) -> Tensor:
    """Captum's Grad-CAM (N, H, W) at the module whose output is the last tapped layer."""
    with frozen(network):
        method = _captum().LayerGradCam(network, _module_of(network, last_tap(network), x[:1]))
        heat = method.attribute(x.clone().requires_grad_(True), label, relu_attributions=True)
    return resize_bilinear(heat.detach(), (x.shape[2], x.shape[3]))[:, 0]


def batched(explain: Explain, network: Network, x: Tensor, label: Tensor) -> Tensor:
    """Maps (N, H, W) of x (N, C, H, W), a few images at a time."""
    return torch.cat([explain(network, *some) for some in zip(x.split(BATCH), label.split(BATCH), strict=True)])


def _captum() -> Any:
    try:
        import captum.attr
    except ImportError:
        raise TrainingError(
            "the comparison with integrated gradients and Grad-CAM needs captum: pip install captum, or leave it out "
            "with --no-references"
        ) from None
    return captum.attr


def _module_of(network: Network, tap: str, x: Tensor) -> nn.Module:
    """The outermost module whose output is what `taps` gives for the layer `tap`."""
    outputs: list[tuple[nn.Module, object]] = []
    hooks = [
        module.register_forward_hook(lambda module, _inputs, output: outputs.append((module, output)))
        for module in network.modules()
    ]
    try:
        with torch.no_grad():
            tapped = network.taps(x)[1][tap]
    finally:
        for hook in hooks:
            hook.remove()
    found = [module for module, output in outputs if output is tapped]
    if not found:
        raise TrainingError(f"no module's output is the layer {tap!r}; use --no-references to leave captum out")
    return found[-1]
