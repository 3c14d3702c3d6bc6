"""Which layers of a network that was not written for Palisade are tapped: the last at each resolution, or blocks."""

from __future__ import annotations

from torch import nn

from training.errors import TrainingError
from training.models.probe import Seen, probe

LAYERS = 5  # tapped at most where the resolution falls
BLOCKS = 4  # tapped where it does not
PROBE_SIDE = 64  # smaller images would leave the last stages of most networks a single pixel
WAY_OUT = "return it from a module that is called once, with the batch as its first axis"


def tapped_layers(body: nn.Module, *, classes: int, channels: int, side: int) -> dict[str, int]:
    """Names and channels of the layers to tap, in order; `TrainingError` if `body` does not give logits of images."""
    sides = sorted({max(side, PROBE_SIDE), side}, reverse=True)
    for number, probed in enumerate(sides):
        try:
            chosen = _chosen(body, probe(body, classes, channels, probed))
            known = (
                {layer.name for layer in probe(body, classes, channels, side, small=True)} if probed != side else None
            )
        except Exception as error:  # a network of images of one size alone may raise anything
            if number + 1 < len(sides):
                continue
            if isinstance(error, TrainingError):
                raise
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            raise TrainingError(f"the network cannot take images of {channels} x {side} x {side}: {reason}") from None
        if chosen and (known is None or known >= {layer.name for layer in chosen}):
            return {layer.name: layer.channels for layer in chosen}
    raise TrainingError(
        f"the network has no layer whose output is a map (N, C, h, w) or a square grid of tokens; {WAY_OUT}"
    )


def _chosen(body: nn.Module, seen: list[Seen]) -> list[Seen]:
    """The last layer at each resolution where there are three at least, else evenly spaced blocks."""
    last = {layer.height: layer for layer in _between_stages(seen)}
    falling: list[Seen] = []
    for layer in (layer for layer in seen if last.get(layer.height) is layer):
        if not falling or layer.height < falling[-1].height:  # what is larger again is no image: attention of tokens
            falling.append(layer)
    return falling[-LAYERS:] if len(falling) >= 3 else _spaced(_blocks(body, seen) or seen, BLOCKS)


def _between_stages(seen: list[Seen]) -> list[Seen]:
    """`seen` without what lies inside a block that reduces the resolution, at the resolution before it.

    A module is such a block if layers of two resolutions lie inside; one of more is a whole network's trunk.
    """
    heights: dict[str, set[int]] = {}
    for layer in seen:
        for parent in _parents(layer.name):
            heights.setdefault(parent, set()).add(layer.height)
    reduced = {layer.name: layer.height for layer in seen if len(heights.get(layer.name, ())) <= 2}
    return [
        layer
        for layer in seen
        if not any(reduced.get(parent, layer.height) < layer.height for parent in _parents(layer.name))
    ]


def _parents(name: str) -> list[str]:
    parts = name.split(".")
    return [".".join(parts[:n]) for n in range(1, len(parts))]


def _blocks(body: nn.Module, seen: list[Seen]) -> list[Seen]:
    """The children of the longest list of modules.

    Lists with less than half of the largest one's weights are parts of a block, however many modules they have.
    """
    containers: dict[str, list[Seen]] = {}
    for layer in seen:
        parent = layer.name.rpartition(".")[0]
        if isinstance(body.get_submodule(parent), nn.Sequential | nn.ModuleList):
            containers.setdefault(parent, []).append(layer)
    weights = {name: sum(p.numel() for p in body.get_submodule(name).parameters()) for name in containers}
    large = [name for name in containers if 2 * weights[name] >= max(weights.values())]
    return max((containers[name] for name in large), key=len, default=[])


def _spaced(layers: list[Seen], count: int) -> list[Seen]:
    """`count` of `layers`, evenly spaced, the last among them."""
    picked = {round((i + 1) * len(layers) / count) - 1 for i in range(count)} if layers else set()
    return [layers[i] for i in sorted(picked) if i >= 0]
