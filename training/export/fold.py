"""Folding BatchNorm into the convolution before it, so that the served graph has none."""

from __future__ import annotations

import copy
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.utils import remove_spectral_norm, remove_weight_norm
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torch.nn.utils.parametrize import is_parametrized, type_before_parametrizations
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from training.models.averaged import Averaged
from training.models.network import Network
from training.models.resnet import Block, SmallResNet


def folded(network: Network, *, side: int = 32) -> Network:
    """A copy in evaluation mode in which every BatchNorm is an identity; outputs agree to float rounding.

    Parameters that no folding changes share their memory with those of `network`.
    Parametrised weights (weight and spectral normalisation, or your own) are computed once and stay as they are.
    Of a network that is not ours, the BatchNorms are folded that read what one convolution gives, if the network still
    answers alike afterwards (images of `side` pixels are tried); else it is left as it is.
    """
    if isinstance(network, Averaged):
        return Averaged(folded(network.network, side=network.side), network.side).eval().requires_grad_(False)
    for module, hook in _normalisations(network):  # computed anew in each forward; only leaves can be copied
        setattr(module, hook.name, getattr(module, hook.name).detach())
    network = _copied(network).eval()
    with torch.no_grad():
        _fold_parametrisations(network)
        if isinstance(network, SmallResNet):
            _fold_residual(network)
        else:  # channels last, as training leaves them, reshapes into strides that cannot be expressed in ONNX
            network = _fold_found(network.to(memory_format=torch.contiguous_format), side)
    return network.requires_grad_(False)


def _copied(network: Network) -> Network:
    """A copy whose parameters are others, which need no gradient, on the same memory."""
    shared = {id(each): nn.Parameter(each.detach(), requires_grad=False) for each in network.parameters()}
    return copy.deepcopy(network, dict[int, Any](shared))


def _fold_parametrisations(network: nn.Module) -> None:
    for module in list(network.modules()):
        if is_parametrized(module):
            # torch's own removal changes a class that the network and its copy share, and so breaks the network.
            values = {name: getattr(module, name) for name in cast(nn.ModuleDict, module.parametrizations)}
            module.__class__ = type_before_parametrizations(module)
            del module.parametrizations
            for name, value in values.items():
                module.register_parameter(name, nn.Parameter(value.detach().clone()))
    for module, hook in _normalisations(network):
        if isinstance(hook, WeightNorm):
            remove_weight_norm(module, hook.name)
        else:
            remove_spectral_norm(module, hook.name)
    network.requires_grad_(False)


def _normalisations(network: nn.Module) -> list[tuple[nn.Module, WeightNorm | SpectralNorm]]:
    """torch's older weight and spectral normalisations, which are hooks, with their modules."""
    return [
        (module, hook)
        for module in network.modules()
        for hook in module._forward_pre_hooks.values()  # noqa: SLF001  # torch has no public list of them
        if isinstance(hook, WeightNorm | SpectralNorm)
    ]


def _fold_residual(network: SmallResNet) -> None:
    _fold_sequence(network.stem)
    for module in network.modules():
        if isinstance(module, Block):
            for number in ("1", "2"):
                convolution, norm = getattr(module, "conv" + number), getattr(module, "bn" + number)
                setattr(module, "conv" + number, fuse_conv_bn_eval(convolution, norm))
                setattr(module, "bn" + number, nn.Identity())
            if isinstance(module.shortcut, nn.Sequential):
                _fold_sequence(module.shortcut)


def _fold_sequence(sequence: nn.Sequential) -> None:
    """Fold the BatchNorm at position 1 into the convolution at position 0."""
    convolution, norm = sequence[0], sequence[1]
    assert isinstance(convolution, nn.Conv2d)
    assert isinstance(norm, nn.BatchNorm2d)
    sequence[0] = fuse_conv_bn_eval(convolution, norm)
    sequence[1] = nn.Identity()


def _fold_found(network: Network, side: int) -> Network:
    """`network` with the BatchNorms folded that follow a convolution; itself if that changes its answers."""
    normalise = getattr(network, "normalise", None)
    channels = 3 if normalise is None else normalise.mean.shape[1]
    parameter = next(network.parameters(), torch.zeros(()))
    x = torch.rand(2, channels, side, side, generator=torch.Generator().manual_seed(0)).to(parameter)
    pairs = _pairs(network, x)
    if not pairs:
        return network
    made = _copied(network)
    for convolution, norm in pairs:
        fused = fuse_conv_bn_eval(_of(made, convolution, nn.Conv2d), _of(made, norm, nn.BatchNorm2d))
        made.set_submodule(convolution, fused)
        made.set_submodule(norm, nn.Identity())
    (before, taps), (after, made_taps) = network.taps(x), made.taps(x)
    alike = [(before, after), *((taps[name], made_taps[name]) for name in taps)]
    return (
        made
        if all(torch.allclose(a, b, rtol=1e-3, atol=1e-4 * (1 + float(a.abs().max()))) for a, b in alike)
        else network
    )


def _pairs(network: Network, x: Tensor) -> list[tuple[str, str]]:
    """Names of a convolution and of the BatchNorm that reads its output, each run once."""
    made_by: dict[int, str] = {}
    kept: list[Tensor] = []  # so that no two outputs have one id
    found: list[tuple[str, str]] = []
    calls: dict[str, int] = {}

    def look(name: str, module: nn.Module, inputs: Any, output: Tensor) -> None:
        calls[name] = calls.get(name, 0) + 1
        kept.append(output)
        if isinstance(module, nn.Conv2d):
            made_by[id(output)] = name
        elif (source := made_by.get(id(inputs[0]))) is not None:
            found.append((source, name))

    hooks = [
        module.register_forward_hook(partial(look, name))
        for name, module in network.named_modules()
        if isinstance(module, nn.Conv2d | nn.BatchNorm2d)
    ]
    try:
        network(x)
    finally:
        for hook in hooks:
            hook.remove()
    return [pair for pair in found if all(calls[name] == 1 for name in pair)]


def _of(network: nn.Module, name: str, kind: type[Any]) -> Any:
    module = network.get_submodule(name)
    assert isinstance(module, kind)
    return module
