"""In which memory format a network is computed: channels last where that is known to be safe, else contiguous.

Channels last is faster on most processors and on GPUs. But oneDNN's AVX2 kernel for the weight gradient of a strided
1 x 1 convolution writes beyond its buffers if the images are channels last and fewer than eight channels go in: wrong
gradients, a corrupt heap, an abort. Its kernels work on blocks of eight channels, so that on a CPU no network is
channels last that has a convolution whose channels are not a multiple of eight. It is the same on every CPU: a run that
is resumed elsewhere keeps its format.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd

BLOCK = 8
IMAGE = 4  # channels of an image at most
N = TypeVar("N", bound=nn.Module)


@dataclass(frozen=True)
class Layout:
    """A memory format, and why it was chosen, as a phrase."""

    format: torch.memory_format
    why: str

    @property
    def name(self) -> str:
        return "channels last" if self.format == torch.channels_last else "contiguous"


def layout_of(network: nn.Module, device: torch.device | str) -> Layout:
    """The format for `network` and its images on `device`."""
    if torch.device(device).type != "cpu":
        return Layout(torch.channels_last, "a GPU computes it")
    owned: set[int] = set()
    for name, module in network.named_modules():
        if isinstance(module, _ConvNd):
            owned |= {id(parameter) for parameter in module.parameters()}
            if not _blocked(module):
                shape = f"{module.in_channels} to {module.out_channels} channels"
                groups = f" in {module.groups} groups" if module.groups > 1 else ""
                return _contiguous(f"{name or 'the convolution'} ({shape}{groups})")
    for name, parameter in network.named_parameters():  # of convolutions that are written as functions
        if parameter.dim() == 4 and id(parameter) not in owned and any(c % BLOCK for c in parameter.shape[:2]):
            return _contiguous(f"the parameter {name} of {' x '.join(map(str, parameter.shape))}")
    return Layout(torch.channels_last, f"the channels of every convolution are multiples of {BLOCK}")


def arranged(network: N, device: torch.device | str) -> tuple[N, Layout]:
    """`network` itself, its weights in the format that `layout_of` chooses, and the format for its images."""
    layout = layout_of(network, device)
    return network.to(memory_format=layout.format), layout


def _contiguous(what: str) -> Layout:
    return Layout(torch.contiguous_format, f"{what} does not have multiples of {BLOCK} channels")


def _blocked(layer: _ConvNd) -> bool:
    """Whether a kernel for blocks of channels takes the layer whole.

    A depthwise convolution is blocked over its groups. The first convolution of a network reads an image's few
    channels: its kernels are others if it is larger than 1 x 1.
    """
    if layer.groups == layer.in_channels and layer.groups > 1:
        return layer.in_channels % BLOCK == 0 and layer.out_channels % BLOCK == 0
    ins, outs = layer.in_channels // layer.groups, layer.out_channels // layer.groups
    image = ins <= IMAGE and layer.groups == 1 and not layer.transposed and min(layer.kernel_size) > 1
    return (image or ins % BLOCK == 0) and outs % BLOCK == 0
