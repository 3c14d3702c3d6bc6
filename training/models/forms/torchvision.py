"""`torchvision:NAME`, with weights of your own."""

from __future__ import annotations

import difflib
from typing import Any

from torch import nn

from training.errors import TrainingError
from training.models.forms.opened import Asked, OpenedModel, Stated, digest_of, needs_weights, sized
from training.models.forms.weights import fill

PREFIX = "torchvision:"


def takes(argument: str) -> bool:
    return argument.startswith(PREFIX)


def opened(asked: Asked) -> OpenedModel:
    """A network of torchvision; names of classes and preprocessing are those of its published weights."""
    name = asked.argument.removeprefix(PREFIX)
    needs_weights(asked)
    body = sized(asked, lambda classes: _made(name, classes, asked.side or 224))
    found = None if asked.weights is None else fill(body, asked.weights, classes=None)
    published = _published(name)
    names = None if published is None else published.meta.get("categories")
    count = _count(body)
    return OpenedModel(
        body.eval(),
        name,
        asked.argument,
        digest="" if asked.weights is None else digest_of([asked.weights]),
        classes=list(names) if names and len(names) == count else None,
        preprocessing=None if published is None else Stated("torchvision", published.transforms()),
        normalise=found,
        side=asked.side if name.startswith("vit_") else None,
    )


def _made(name: str, classes: int, side: int) -> nn.Module:
    from torchvision import models

    known = models.list_models(module=models)
    if name not in known:
        near = difflib.get_close_matches(name, known, n=3)
        hint = f"; did you mean {' or '.join(near)}?" if near else f"; there are {', '.join(known)}"
        raise TrainingError(f"torchvision has no network {name!r}{hint}")
    # Vision transformers know positions of one size of image.
    size = {"image_size": side} if name.startswith("vit_") else {}
    try:
        return models.get_model(name, weights=None, num_classes=classes, **size)
    except (RuntimeError, ValueError, TypeError) as error:
        raise TrainingError(f"torchvision:{name} cannot be made for images of {side} x {side}: {error}") from None


def _published(name: str) -> Any:
    """What torchvision says about the weights that it publishes for a network; nothing is fetched."""
    from torchvision import models

    try:
        return models.get_model_weights(name).DEFAULT
    except (ValueError, AttributeError):
        return None


def _count(body: nn.Module) -> int:
    """How many classes: of the last linear layer or convolution."""
    heads = [module for module in body.modules() if isinstance(module, nn.Linear | nn.Conv2d)]
    return len(heads[-1].weight) if heads else 0
