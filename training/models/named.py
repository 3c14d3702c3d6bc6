"""Architectures named from outside: `torchvision:NAME`, and `MODULE:FACTORY` for your own code."""

from __future__ import annotations

import difflib
import importlib
import inspect
import sys
from pathlib import Path

from torch import nn

from training.errors import TrainingError
from training.models.adapted import Adapted
from training.models.network import Network

TORCHVISION = "torchvision"


def named_network(arch: str, *, classes: int, mean: list[float], std: list[float], side: int) -> Network:
    """The network that `arch` names, with random weights, for square images of `side` pixels.

    A factory that returns a `Network` is taken as it is, normalisation included. Raises `TrainingError` with the cause.
    """
    source, _, name = arch.partition(":")
    body = _torchvision(name, classes, side) if source == TORCHVISION else _own(source, name, classes)
    if isinstance(body, Network):
        return body
    return Adapted(body, classes=classes, mean=mean, std=std, side=side)


def _torchvision(name: str, classes: int, side: int) -> nn.Module:
    from torchvision import models

    known = models.list_models(module=models)
    if name not in known:
        near = difflib.get_close_matches(name, known, n=3)
        hint = f"; did you mean {' or '.join(near)}?" if near else f"; there are {', '.join(known)}"
        raise TrainingError(f"torchvision has no network {name!r}{hint}")
    # Vision transformers know positions of one size of image.
    sized = {"image_size": side} if name.startswith("vit_") else {}
    try:
        return models.get_model(name, weights=None, num_classes=classes, **sized)
    except (RuntimeError, ValueError, TypeError) as error:
        raise TrainingError(f"torchvision:{name} cannot be made for images of {side} x {side}: {error}") from None


def _own(module: str, factory: str, classes: int) -> nn.Module:
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        found = getattr(importlib.import_module(module), factory)
    except ModuleNotFoundError as error:
        raise TrainingError(
            f"{module}:{factory}: no module {error.name!r} is found from {here} or in this environment"
        ) from None
    except AttributeError:
        raise TrainingError(f"{module}:{factory}: the module {module!r} has no {factory!r}") from None
    except Exception as error:  # noqa: BLE001  # somebody's module, as it is imported
        raise TrainingError(f"{module}:{factory}: importing {module!r} raised {_told(error)}") from None
    try:
        wanted = {"num_classes": classes} if _takes(found, "num_classes") else {}
        network = found(**wanted)
    except Exception as error:  # noqa: BLE001
        raise TrainingError(f"{module}:{factory}: calling {factory} raised {_told(error)}") from None
    if not isinstance(network, nn.Module):
        raise TrainingError(f"{module}:{factory} gave a {type(network).__name__}, not a torch.nn.Module")
    return network


def _takes(factory: object, name: str) -> bool:
    if not callable(factory):
        raise TypeError(f"a {type(factory).__name__} cannot be called")
    parameters = inspect.signature(factory).parameters.values()
    return any(p.name == name or p.kind is p.VAR_KEYWORD for p in parameters)


def _told(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
