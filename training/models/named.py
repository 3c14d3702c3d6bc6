"""Networks named from outside, in whatever form they come (`training.models.forms`), as networks with taps."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import nn

from training.models.adapted import Adapted
from training.models.forms import architecture
from training.models.network import Network


def named_network(
    arch: str,
    *,
    classes: int,
    mean: list[float],
    std: list[float],
    side: int,
    reverse: bool = False,
    kept: Path | None = None,
    layers: Mapping[str, int] | None = None,
) -> Network:
    """The network that `arch` names, its weights not loaded, for square images of `side` pixels.

    A factory that returns a `Network` is taken as it is, normalisation included. `reverse` gives it BGR. `kept` is
    where a bundle keeps the files of an architecture; `layers` are those to tap, with their channels, if they are
    known. Raises `TrainingError`.
    """
    body = architecture(arch, classes=classes, side=side, kept=kept)
    return with_taps(body, classes=classes, mean=mean, std=std, side=side, reverse=reverse, layers=layers)


def with_taps(
    body: nn.Module,
    *,
    classes: int,
    mean: list[float],
    std: list[float],
    side: int,
    reverse: bool = False,
    layers: Mapping[str, int] | None = None,
) -> Network:
    """`body` behind a normalisation (and BGR if `reverse`), with its layers tapped; a `Network` has both of its own."""
    if isinstance(body, Network):
        return body
    return Adapted(body, classes=classes, mean=mean, std=std, side=side, reverse=reverse, layers=layers)
