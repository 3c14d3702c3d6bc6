"""The response of every convolution of a network to an image, for any architecture."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import count
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from training.models.network import Network

FOLLOWED: frozenset[Callable[..., Any]] = frozenset(
    {
        F.batch_norm,
        F.instance_norm,
        F.group_norm,
        torch.relu,
        torch.relu_,
        Tensor.relu,
        Tensor.relu_,
        F.relu,
        F.relu6,
        F.hardtanh,
        F.leaky_relu,
        F.elu,
        F.silu,
        F.gelu,
        F.mish,
        F.softplus,
        F.hardswish,
    }
)


class _Following(TorchFunctionMode):
    """Passes a convolution's name on from its output to the output of its normalisation or activation."""

    def __init__(self) -> None:
        super().__init__()
        self.latest: dict[str, Tensor] = {}
        self.made: dict[int, int] = {}  # when each tensor was made, by its id
        self._calls = count()
        self._owner: dict[int, str] = {}
        self._alive: list[Tensor] = []  # the id of a tensor that is gone may be another's

    def found(self, name: str, output: Tensor) -> None:
        self.latest[name] = output
        self._owner[id(output)] = name
        self._alive.append(output)

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],  # torch passes it
        args: Sequence[Any] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        output = func(*args, **(kwargs or {}))
        self.made[id(output)] = next(self._calls)
        if func in FOLLOWED and (name := self._owner.pop(id(args[0]), None)):
            self.found(name, output)
        return output


def responses(network: nn.Module, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Logits (N, K) and the response (N, C, H, W) of every convolution, by name, in the order of computation.

    The response is the convolution's output after the normalisation and the activation that follow it directly, so
    that it is the same whether BatchNorm is folded or not; a branch that is added to another ends before the sum. A
    `Network`, which names layers itself, has these as well, and its name for a convolution replaces the module's.
    """
    following = _Following()

    def hook(name: str) -> Callable[[nn.Module, Any, Tensor], None]:
        return lambda _module, _inputs, output: following.found(name, output)

    handles = [
        module.register_forward_hook(hook(name))
        for name, module in network.named_modules()
        if isinstance(module, nn.Conv2d)
    ]
    taps: dict[str, Tensor] = {}
    try:
        with following:
            if isinstance(network, Network):
                logits, taps = network.taps(x)
            else:
                logits = network(x)
    finally:
        for handle in handles:
            handle.remove()
    own = {id(tensor): name for name, tensor in taps.items()}
    named = {own.get(id(tensor), name): tensor for name, tensor in following.latest.items()} | taps
    return logits, dict(sorted(named.items(), key=lambda item: following.made.get(id(item[1]), 0)))
