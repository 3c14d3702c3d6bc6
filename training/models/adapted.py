"""Networks that were not written for Palisade: torchvision's, your own code's; tapped layers are found by a probe."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from training.errors import TrainingError
from training.models.network import Network, Normalise
from training.util.module_modes import frozen

LAYERS = 5  # tapped at most where the resolution falls
BLOCKS = 4  # tapped where it does not
PROBE_SIDE = 64  # smaller images would leave the last stages of most networks a single pixel


class Adapted(Network):
    """`body`, a module from normalised images to logits, with taps.

    Which layers are tapped is found by one forward of `body`: the last, outermost module at each resolution (`layer1`
    to `layer4` of a ResNet); where the resolution never falls (transformers), evenly spaced blocks of the longest
    container of blocks. Tokens (N, T, C) of a square grid become maps (N, C, h, w), the class token dropped. The last
    block of a transformer with a class token is not tapped: its other tokens reach no answer.
    """

    def __init__(self, body: nn.Module, *, classes: int, mean: list[float], std: list[float], side: int) -> None:
        super().__init__()
        self.normalise = Normalise(mean, std)
        self.body = body
        for module in body.modules():
            if hasattr(module, "inplace"):  # a tapped tensor must stay what it was
                setattr(module, "inplace", False)  # noqa: B010
        self._layers = tapped_layers(body, classes=classes, channels=len(mean), side=side)

    @property
    def tap_channels(self) -> dict[str, int]:
        return dict(self._layers)

    def taps(self, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        found: dict[str, Tensor] = {}

        def keep(name: str, _module: nn.Module, _inputs: Any, output: Tensor) -> Tensor | None:
            made = as_map(output)
            assert made is not None
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


def as_map(output: object) -> Tensor | None:
    """What a module gave as a map (N, C, h, w); None if it is none.

    Channels are last where the first two of three sizes alone agree, as images are square here; tokens (N, T, C) are a
    map if T is a square, or one more than one: a class token comes first.
    """
    if not isinstance(output, Tensor) or not output.is_floating_point():
        return None
    if output.ndim == 4:
        _, first, second, third = output.shape
        return output.permute(0, 3, 1, 2) if first == second != third else output
    if output.ndim == 3:
        tokens = output.shape[1]
        grid = int(tokens**0.5)
        if grid > 1 and tokens - grid * grid in (0, 1):
            return output[:, tokens - grid * grid :].transpose(1, 2).unflatten(2, (grid, grid))
    return None


def _from_map(made: Tensor, output: Tensor) -> Tensor:
    """`output` made of its map again: what follows then depends on the map, whose gradient is defined."""
    if output.ndim == 4:
        return made.permute(0, 2, 3, 1)
    tokens = made.flatten(2).transpose(1, 2)
    return torch.cat([output[:, : output.shape[1] - tokens.shape[1]], tokens], 1)


@dataclass(frozen=True)
class _Seen:
    """A module's output in the probe: the tensor itself, its channels and its height."""

    name: str
    output: Tensor
    channels: int
    height: int
    class_token: bool


def tapped_layers(body: nn.Module, *, classes: int, channels: int, side: int) -> dict[str, int]:
    """Names and channels of the layers to tap, in order; `TrainingError` if `body` does not give logits of images."""
    try:
        seen = _probe(body, classes, channels, max(side, PROBE_SIDE))
    except Exception:  # noqa: BLE001  # a network of images of one size alone may raise anything
        try:
            seen = _probe(body, classes, channels, side)
        except TrainingError:
            raise
        except Exception as error:  # noqa: BLE001
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            raise TrainingError(f"the network cannot take images of {channels} x {side} x {side}: {reason}") from None
    by_height: dict[int, _Seen] = {}
    for layer in seen:
        known = by_height.get(layer.height)
        if known is None or known.output is layer.output or layer.name.count(".") <= known.name.count("."):
            by_height[layer.height] = layer
    if len(by_height) >= 3:
        order = [layer.name for layer in seen]
        chosen = sorted(by_height.values(), key=lambda layer: order.index(layer.name))[-LAYERS:]
    else:
        chosen = _spaced(_blocks(body, seen) or seen, BLOCKS)
    if not chosen:
        raise TrainingError("the network has no layer whose output is a map (N, C, h, w) or a square grid of tokens")
    return {layer.name: layer.channels for layer in chosen}


def _probe(body: nn.Module, classes: int, channels: int, side: int) -> list[_Seen]:
    """Outputs of modules that are called once and give maps of more than one pixel, in the order of their ends."""
    seen: list[_Seen] = []
    calls: dict[str, int] = {}

    def look(name: str, module: nn.Module, _inputs: Any, output: Any) -> None:
        calls[name] = calls.get(name, 0) + 1
        made = as_map(output)
        if (
            made is not None
            and made.shape[2] > 1
            and not isinstance(module, nn.AdaptiveAvgPool2d | nn.AdaptiveMaxPool2d)
        ):
            class_token = output.ndim == 3 and output.shape[1] != made.shape[2] * made.shape[3]
            seen.append(_Seen(name, output, made.shape[1], made.shape[2], class_token))

    hooks = [m.register_forward_hook(partial(look, name)) for name, m in body.named_modules() if name]
    parameter = next(body.parameters(), torch.zeros(()))
    try:
        with frozen(body), torch.no_grad():
            logits = body(torch.zeros(1, channels, side, side, device=parameter.device, dtype=parameter.dtype))
    finally:
        for hook in hooks:
            hook.remove()
    if not isinstance(logits, Tensor) or logits.shape != (1, classes):
        told = tuple(logits.shape) if isinstance(logits, Tensor) else f"a {type(logits).__name__}"
        raise TrainingError(f"the network answers one image with {told}, not with logits (1, {classes})")
    return [layer for layer in seen if calls[layer.name] == 1]


def _blocks(body: nn.Module, seen: list[_Seen]) -> list[_Seen]:
    """The children of the longest list of modules, less the last where there is a class token.

    Lists with less than half of the largest one's weights are parts of a block, however many modules they have.
    """
    containers: dict[str, list[_Seen]] = {}
    for layer in seen:
        parent, dot, _ = layer.name.rpartition(".")
        if dot and isinstance(body.get_submodule(parent), nn.Sequential | nn.ModuleList):
            containers.setdefault(parent, []).append(layer)
    weights = {name: sum(p.numel() for p in body.get_submodule(name).parameters()) for name in containers}
    large = [name for name in containers if 2 * weights[name] >= max(weights.values())]
    blocks = max((containers[name] for name in large), key=len, default=[])
    return blocks[:-1] if blocks and blocks[-1].class_token else blocks


def _spaced(layers: list[_Seen], count: int) -> list[_Seen]:
    """`count` of `layers`, evenly spaced, the last among them."""
    picked = {round((i + 1) * len(layers) / count) - 1 for i in range(count)} if layers else set()
    return [layers[i] for i in sorted(picked) if i >= 0]
