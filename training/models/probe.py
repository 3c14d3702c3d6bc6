"""Layers of a network whose outputs are maps of the batch, found by a probe.

Two images of different content go through the network, then the same two in the other order. A layer gives a map of the
batch: its first axis is the batch, it depends on the images, and it follows their order. Weights (of parametrisations),
tables of positions, windows of attention, what merely repeats its input (dropout, padding, permutations), and what
reaches no answer are none.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import ParametrizationList
from torch.utils.hooks import RemovableHandle

from training.errors import TrainingError
from training.util.module_modes import frozen, seeded

WIDEST = 16  # border in pixels, both sides together, that is looked for around a repeated input


def as_map(output: object) -> Tensor | None:
    """A module's output as a map (N, C, h, w); None if it is none.

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


@dataclass(frozen=True)
class Seen:
    """A module's output in the probe: the tensor itself, a copy of its map, and how often it had been written to."""

    name: str
    output: Tensor
    map: Tensor
    version: int

    @property
    def channels(self) -> int:
        return self.map.shape[1]

    @property
    def height(self) -> int:
        return self.map.shape[2]


def answers(body: nn.Module, *, channels: int, side: int) -> int:
    """How many logits `body` gives; `TrainingError` if it cannot take images of `side` pixels, or gives no logits.

    Probabilities are none: their softmax is no confidence, and the gradients of sure answers vanish.
    """
    x = _two_images(channels, side)
    try:
        with frozen(body), torch.no_grad():
            logits = body(x)
    except Exception as error:  # noqa: BLE001  # the user's network runs here and may raise anything
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise TrainingError(f"the network cannot take images of {channels} x {side} x {side}: {reason}") from None
    if not isinstance(logits, Tensor) or logits.ndim != 2:
        _check_logits(logits, 0)
    sums = logits.sum(1)
    if logits.shape[1] > 1 and bool((logits >= 0).all()) and torch.allclose(sums, torch.ones_like(sums), atol=1e-4):
        raise TrainingError("the network answers with probabilities, not with logits: leave out the softmax at its end")
    return int(logits.shape[1])


def probe(body: nn.Module, classes: int, channels: int, side: int, *, small: bool = False) -> list[Seen]:
    """Maps of the batch, of modules that are called once, in the order of their ends; of one pixel only if `small`."""
    seen: dict[str, Seen] = {}
    alike: set[str] = set()
    calls: dict[str, int] = {}

    def look(name: str, module: nn.Module, inputs: Any, named: dict[str, Any], output: Any) -> None:
        calls[name] = calls.get(name, 0) + 1
        made = _map_of_batch(output)
        if made is None or (made.shape[2] == 1 and not small):
            return
        if isinstance(module, nn.AdaptiveAvgPool2d | nn.AdaptiveMaxPool2d) or _repeats(
            output, (*inputs, *named.values())
        ):
            return
        seen[name] = Seen(name, output, made.detach().clone(), _writes(output))

    def compare(name: str, _module: nn.Module, _inputs: Any, output: Any) -> None:
        made, first = as_map(output), seen.get(name)
        if made is not None and first is not None and made.shape == first.map.shape:
            scale = float(first.map.abs().max())
            if torch.allclose(made.detach().flip(0), first.map, rtol=1e-3, atol=1e-4 * (1 + scale)):
                alike.add(name)

    parameter = next(body.parameters(), torch.zeros(()))
    x = _two_images(channels, side).to(parameter)
    names = [(name, module) for name, module in body.named_modules() if name and not _of_weights(body, name)]
    with frozen(body), _nothing_zero(body), torch.enable_grad():
        # Computed from a leaf: what depends on the images is known by its gradient, and may be written to.
        images = x.requires_grad_(True) * 1
        with _hooked(m.register_forward_hook(partial(look, name), with_kwargs=True) for name, m in names):
            logits = body(images)
        _check_logits(logits, classes)
        kept = [layer for layer in seen.values() if _writes(layer.output) == layer.version and calls[layer.name] == 1]
        with torch.no_grad(), _hooked(m.register_forward_hook(partial(compare, name)) for name, m in names):
            body(x.detach().flip(0))
        return _that_matter([layer for layer in kept if layer.name in alike], logits)


def _that_matter(layers: list[Seen], logits: Tensor) -> list[Seen]:
    """Layers whose map reaches the answer; where it reads a class token, the last block's other tokens do not."""
    if not layers:
        return []
    weights = torch.randn(logits.shape, generator=seeded(8)).to(logits)
    gradients = torch.autograd.grad((logits * weights).sum(), [layer.output for layer in layers], allow_unused=True)
    maps = [None if gradient is None else as_map(gradient) for gradient in gradients]
    return [layer for layer, found in zip(layers, maps, strict=True) if found is not None and bool(found.any())]


@contextmanager
def _nothing_zero(body: nn.Module) -> Iterator[None]:
    """Matrices that are zero, such as an untrained head, are random inside: nothing would reach the answer."""
    zeros = [p for p in body.parameters() if p.ndim == 2 and not p.any()]
    try:
        for number, parameter in enumerate(zeros):
            parameter.data.normal_(std=0.02, generator=seeded(number))
        yield
    finally:
        for parameter in zeros:
            parameter.data.zero_()


def _two_images(channels: int, side: int) -> Tensor:
    """Two images (2, C, side, side) of noise over a ramp of different direction."""
    ramp = torch.linspace(-1, 1, side)
    ramps = torch.stack([ramp.expand(side, side), ramp[:, None].expand(side, side)])
    return ramps[:, None] + torch.randn(2, channels, side, side, generator=seeded(7))


def _map_of_batch(output: object) -> Tensor | None:
    """A module's output for two images as a square map (2, C, h, h) that depends on them; None if it is none."""
    made = as_map(output)
    if made is None or len(made) != 2 or made.shape[2] != made.shape[3] or not made.requires_grad:
        return None
    first, second = made.detach()
    return None if torch.equal(first, second) and bool(first.min() < first.max()) else made


def _repeats(output: Tensor, inputs: tuple[Any, ...]) -> bool:
    """Whether a module returns its input: the same values, in another order or with a border around them."""
    output = output.detach()
    for given in (each.detach() for each in inputs if isinstance(each, Tensor) and each.dtype == output.dtype):
        if given.numel() == output.numel():
            alike = given.max() == output.max() and given.min() == output.min()
            if alike and torch.equal(given.flatten().sort().values, output.flatten().sort().values):
                return True
        elif given.ndim == output.ndim == 4 and given.shape[:2] == output.shape[:2]:
            height, width = given.shape[2:]
            if output.shape[2] - height > WIDEST or output.shape[3] - width > WIDEST:
                continue
            for top in range(output.shape[2] - height + 1):
                for left in range(output.shape[3] - width + 1):
                    if torch.equal(output[:, :, top : top + height, left : left + width], given):
                        return True
    return False


def _writes(tensor: Tensor) -> int:
    """How often a tensor was written to: what is changed after its module gave it (`x += y`) is not that layer's."""
    return tensor._version  # noqa: SLF001  # torch has no public name for it


def _of_weights(body: nn.Module, name: str) -> bool:
    """Whether the module `name` computes a weight: it is part of a parametrisation."""
    parts = name.split(".")
    return any(isinstance(body.get_submodule(".".join(parts[: n + 1])), ParametrizationList) for n in range(len(parts)))


def _check_logits(logits: object, classes: int) -> None:
    if not isinstance(logits, Tensor) or logits.shape != (2, classes):
        returned = tuple(logits.shape) if isinstance(logits, Tensor) else f"a {type(logits).__name__}"
        raise TrainingError(f"the network answers two images with {returned}, not with logits (2, {classes})")


@contextmanager
def _hooked(hooks: Iterable[RemovableHandle]) -> Iterator[None]:
    placed = list(hooks)
    try:
        yield
    finally:
        for hook in placed:
            hook.remove()
