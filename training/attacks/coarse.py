"""A defence in the precision that an attack searches in: networks in bfloat16, everything behind them in float32."""

from __future__ import annotations

import copy
from typing import Any, cast

import torch
from torch import Tensor, nn

from training.defence.graph import DefenceGraph


class _Coarse(nn.Module):
    """A network whose activations are computed in bfloat16 and given in float32; all else is the network's."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.inner: Any = network.to(memory_format=torch.channels_last)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.inner, name)

    def forward(self, x: Tensor) -> Tensor:
        return self.taps(x)[0]

    def taps(self, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        with torch.autocast(x.device.type, torch.bfloat16):
            logits, taps = self.inner.taps(x.contiguous(memory_format=torch.channels_last))
        return logits.float(), {name: tap.float() for name, tap in taps.items()}


def coarse(defence: DefenceGraph) -> DefenceGraph:
    """A copy of `defence` to search on; what is found has to be judged by the original."""
    copied = copy.deepcopy(defence)
    copied.network = cast(Any, _Coarse(copied.network))
    if copied.companion is not None:
        copied.companion = cast(Any, _Coarse(copied.companion))
    return copied
