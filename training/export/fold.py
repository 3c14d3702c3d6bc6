"""Folding BatchNorm into the convolution before it, so that the served graph has none."""

from __future__ import annotations

import copy

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from training.models.resnet import Block, SmallResNet


def folded(network: SmallResNet) -> SmallResNet:
    """A copy in evaluation mode in which every BatchNorm is an identity; outputs agree to float rounding."""
    network = copy.deepcopy(network).eval()
    with torch.no_grad():
        _fold_sequence(network.stem)
        for module in network.modules():
            if isinstance(module, Block):
                for number in ("1", "2"):
                    convolution, norm = getattr(module, "conv" + number), getattr(module, "bn" + number)
                    setattr(module, "conv" + number, fuse_conv_bn_eval(convolution, norm))
                    setattr(module, "bn" + number, nn.Identity())
                if isinstance(module.shortcut, nn.Sequential):
                    _fold_sequence(module.shortcut)
    return network.requires_grad_(False)


def _fold_sequence(sequence: nn.Sequential) -> None:
    """Fold the BatchNorm at position 1 into the convolution at position 0."""
    convolution, norm = sequence[0], sequence[1]
    assert isinstance(convolution, nn.Conv2d)
    assert isinstance(norm, nn.BatchNorm2d)
    sequence[0] = fuse_conv_bn_eval(convolution, norm)
    sequence[1] = nn.Identity()
