"""A network in the precision that an attack searches in; what an attack finds is judged in float32.

One forward in bfloat16 costs about half of one in float32 where the machine has instructions for it, and the direction
of a gradient hardly changes; whether an image fools the network may.
"""

from __future__ import annotations

import copy
from typing import Any, cast

import torch
from torch import Tensor, nn

from training.defence.graph import DefenceGraph
from training.models.memory_format import arranged
from training.util.precision import machine_precision, say_once


class _Searched(nn.Module):
    """A network in bfloat16 where gradients are wanted, else in float32; it returns float32, as the network does."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        device = next((p.device for p in network.parameters()), torch.device("cpu"))
        choice = machine_precision(device.type)
        self.inner, self.layout = cast(Any, arranged(network, device))
        self.coarse = choice.precision == "bf16"
        say_once(
            f"attacks search in {choice.precision} ({choice.why}) and are judged in fp32; "
            f"memory format {self.layout.name} ({self.layout.why})"
        )

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.inner, name)

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self.coarse and torch.is_grad_enabled()):
            return cast(Tensor, self.inner(x.contiguous(memory_format=self.layout.format))).float()

    def taps(self, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self.coarse and torch.is_grad_enabled()):
            logits, taps = self.inner.taps(x.contiguous(memory_format=self.layout.format))
        return logits.float(), {name: tap.float() for name, tap in taps.items()}


def searched(network: nn.Module) -> nn.Module:
    """A copy of `network` in evaluation mode, without parameter gradients: pixels (N, C, H, W) to logits (N, K).

    In bfloat16 where gradients are wanted, if the machine is made for it; in float32 under `torch.no_grad`, where an
    attack judges what it found.
    """
    return _Searched(copy.deepcopy(network).eval().requires_grad_(False))


def searched_defence(defence: DefenceGraph) -> DefenceGraph:
    """A copy of `defence` whose networks are `searched`; what is found has to be judged by the original."""
    copied = copy.deepcopy(defence)
    copied.network = cast(Any, searched(copied.network))
    if copied.companion is not None:
        copied.companion = cast(Any, searched(copied.companion))
    return copied
