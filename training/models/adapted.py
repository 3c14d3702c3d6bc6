"""Networks that were not written for Palisade: torchvision's, your own code's; tapped layers are found by a probe."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from training.errors import TrainingError
from training.models.layers import tapped_layers
from training.models.network import Network, Normalise
from training.models.probe import as_map


class Adapted(Network):
    """`body`, a module from normalised images to logits, with taps.

    Which layers are tapped is found by a probe of `body` (`training.models.layers`): the last, outermost module at each
    resolution (`layer1` to `layer4` of a ResNet); where the resolution never falls (transformers), evenly spaced blocks
    of the longest container of blocks. Tokens (N, T, C) of a square grid become maps (N, C, h, w), the class token
    dropped. The last block of a transformer with a class token is not tapped: its other tokens reach no answer.
    `layers`, with their channels, are tapped without a probe where they are known.
    """

    def __init__(
        self,
        body: nn.Module,
        *,
        classes: int,
        mean: list[float],
        std: list[float],
        side: int,
        reverse: bool = False,
        layers: Mapping[str, int] | None = None,
    ) -> None:
        super().__init__()
        self.normalise = Normalise(mean, std, reverse=reverse)
        self.body = body
        for module in body.modules():
            if hasattr(module, "inplace"):  # a tapped tensor must stay what it was
                setattr(module, "inplace", False)  # noqa: B010
        if layers is None:
            layers = tapped_layers(body, classes=classes, channels=len(mean), side=side)
        self._layers = dict(layers)

    @property
    def tap_channels(self) -> dict[str, int]:
        return dict(self._layers)

    def taps(self, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        found: dict[str, Tensor] = {}

        def keep(name: str, _module: nn.Module, _inputs: Any, output: Tensor) -> Tensor | None:
            made = as_map(output)
            if made is None or made.shape[0] != x.shape[0]:  # as sizes: `len` would fix the exported batch
                shape = tuple(output.shape) if isinstance(output, Tensor) else f"a {type(output).__name__}"
                raise TrainingError(
                    f"the layer {name} gave {shape} for {len(x)} images of {x.shape[2]} x {x.shape[3]}, which is no map"
                )
            found[name] = made
            return None if made is output else _from_map(made, output)

        hooks = [self.body.get_submodule(name).register_forward_hook(partial(keep, name)) for name in self._layers]
        try:
            logits = self.body(self.normalise(x))
        finally:
            for hook in hooks:
                hook.remove()
        return logits, {name: found[name] for name in self._layers}

    def forward(self, x: Tensor) -> Tensor:
        return self.body(self.normalise(x))


def _from_map(made: Tensor, output: Tensor) -> Tensor:
    """`output` rebuilt from its map: what follows then depends on the map, whose gradient is defined."""
    if output.ndim == 4:
        return made.permute(0, 2, 3, 1)
    tokens = made.flatten(2).transpose(1, 2)
    return torch.cat([output[:, : output.shape[1] - tokens.shape[1]], tokens], 1)
