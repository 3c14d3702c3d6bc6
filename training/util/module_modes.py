"""Context managers that put a network into a mode and restore what was there before."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


@contextmanager
def frozen(model: nn.Module) -> Iterator[nn.Module]:
    """Evaluation mode without parameter gradients (for attacks and measurements); restores both afterwards."""
    training = {module: module.training for module in model.modules()}
    required = {parameter: parameter.requires_grad for parameter in model.parameters()}
    try:
        model.eval().requires_grad_(False)
        yield model
    finally:
        for module, mode in training.items():
            module.training = mode
        for parameter, flag in required.items():
            parameter.requires_grad_(flag)


@contextmanager
def denormals_flushed() -> Iterator[None]:
    """Subnormal numbers count as zero in this thread: decaying weights pass through them, a hundred times slower."""
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)


def freeze_batchnorm(model: nn.Module) -> None:
    """Put every BatchNorm layer into evaluation mode: running statistics are used and stay as they are."""
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            module.eval()


@contextmanager
def affine_batchnorm(model: nn.Module) -> Iterator[nn.Module]:
    """BatchNorm layers in evaluation mode compute x * scale + shift themselves: the same up to rounding.

    The second derivative of that is two products; torch's own for BatchNorm takes many passes over the activations.
    """
    layers = [m for m in model.modules() if isinstance(m, _BatchNorm) and not m.training and m.track_running_stats]
    try:
        for layer in layers:
            layer.forward = partial(_affine, layer)  # type: ignore[method-assign]
        yield model
    finally:
        for layer in layers:
            del layer.forward


def _affine(layer: _BatchNorm, x: Tensor) -> Tensor:
    assert layer.running_mean is not None
    assert layer.running_var is not None
    scale = torch.rsqrt(layer.running_var + layer.eps)
    if layer.affine:
        scale = layer.weight * scale
    shift = -layer.running_mean * scale
    if layer.affine:
        shift = shift + layer.bias
    shape = (-1, *[1] * (x.dim() - 2))
    return torch.addcmul(shift.view(shape), x, scale.view(shape))


@contextmanager
def batchnorm_stats_kept(model: nn.Module) -> Iterator[nn.Module]:
    """Batch statistics may be used but running statistics don't move (a second forward of the same step)."""
    layers = [m for m in model.modules() if isinstance(m, _BatchNorm)]
    momenta = [m.momentum for m in layers]
    try:
        for layer in layers:
            layer.momentum = 0.0
        yield model
    finally:
        for layer, momentum in zip(layers, momenta, strict=True):
            layer.momentum = momentum


def seeded(*numbers: int) -> torch.Generator:
    """A CPU generator whose seed is a mix of `numbers` (run seed, stage, epoch), so that a resumed run repeats it."""
    seed = 0x9E3779B97F4A7C15
    for number in numbers:
        seed = (seed ^ (number + 0x7F4A7C15)) * 0xBF58476D1CE4E5B9 % 2**63
    return torch.Generator().manual_seed(seed)
