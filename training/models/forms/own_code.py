"""Your own code: `MODULE:FACTORY` or `FILE.py:FACTORY`."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import inspect
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import torch
from torch import nn

from training.errors import TrainingError
from training.models.forms.opened import Asked, OpenedModel, digest_of, sized
from training.models.forms.weights import fill


def takes_file(argument: str) -> bool:
    return argument.rpartition(":")[0].endswith(".py")


def takes_module(argument: str) -> bool:
    source, _, factory = argument.rpartition(":")
    return bool(source and factory)


def opened(asked: Asked) -> OpenedModel:
    """The network that a function of your code returns, with `--weights` or with its own."""
    source, _, factory = asked.argument.rpartition(":")
    body = sized(asked, lambda classes: _own(source, factory, classes))
    found = None if asked.weights is None else fill(body, asked.weights, classes=asked.classes)
    return OpenedModel(
        body.eval(),
        factory,
        asked.argument,
        digest=_digest(body) if asked.weights is None else digest_of([asked.weights]),
        normalise=found,
    )


def _digest(body: nn.Module) -> str:
    """Of the tensors of a network that came with its weights."""
    found = hashlib.sha256()
    for name, tensor in sorted(body.state_dict().items()):
        found.update(f"{name} {tuple(tensor.shape)}\n".encode())
        found.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def _own(source: str, factory: str, classes: int) -> nn.Module:
    """The network that `factory` of `source`, a module's name or a .py file, returns."""
    arch = f"{source}:{factory}"
    module = _from_file(arch, Path(source)) if source.endswith(".py") else _imported(arch, source)
    try:
        found = getattr(module, factory)
    except AttributeError:
        raise TrainingError(f"{arch}: the module {source!r} has no {factory!r}") from None
    try:
        wanted = {"num_classes": classes} if _takes(found, "num_classes") else {}
        network = found(**wanted)
    except Exception as error:  # noqa: BLE001
        raise TrainingError(f"{arch}: calling {factory} raised {_described(error)}") from None
    if not isinstance(network, nn.Module):
        raise TrainingError(f"{arch} gave a {type(network).__name__}, not a torch.nn.Module")
    return network


def _imported(arch: str, name: str) -> ModuleType:
    """The module `name`, found from the working directory or in this environment."""
    here = Path.cwd()
    _look_in(here)
    mine = _file_of(here, name)
    try:
        with _import_errors(arch, f"is found from {here} or in this environment"):
            module = importlib.import_module(name)
    except TrainingError as error:
        # Such as the user's training/nets.py, which our own package `training` hides.
        raise _hidden(arch, name, mine) if mine and _is_hidden(name, here) else error from None
    if mine and module.__file__ and Path(module.__file__).resolve() != mine.resolve():
        raise _hidden(arch, name, mine)
    return module


def _from_file(arch: str, path: Path) -> ModuleType:
    """The module in the file `path`, whatever its name; its neighbours can be imported from it."""
    if not path.is_file():
        raise TrainingError(f"{arch}: no file {path} is found from {Path.cwd()}")
    _look_in(path.resolve().parent)
    name = f"palisade_model_{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:12]}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # before it runs: dataclasses look themselves up
    with _import_errors(arch, f"is found from {path.parent} or in this environment"):
        spec.loader.exec_module(module)
    return module


@contextmanager
def _import_errors(arch: str, where: str) -> Iterator[None]:
    """Reports what a user's module raises as it is imported, in one line."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise TrainingError(f"{arch}: no module {error.name!r} {where}") from None
    except SystemExit as error:
        raise TrainingError(f"{arch}: importing it called exit({error.code})") from None
    except Exception as error:  # noqa: BLE001
        raise TrainingError(f"{arch}: importing it raised {_described(error)}") from None


def _look_in(folder: Path) -> None:
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))


def _file_of(folder: Path, name: str) -> Path | None:
    """The file below `folder` that the module `name` would be."""
    place = folder.joinpath(*name.split("."))
    return next((path for path in (place.with_suffix(".py"), place / "__init__.py") if path.is_file()), None)


def _is_hidden(name: str, folder: Path) -> bool:
    """Whether Python has imported another package of the name of the one below `folder`."""
    package = sys.modules.get(name.partition(".")[0])
    places = [Path(place).resolve() for place in getattr(package, "__path__", [])]
    return bool(places) and (folder / name.partition(".")[0]).resolve() not in places


def _hidden(arch: str, name: str, mine: Path) -> TrainingError:
    package, file, factory = name.partition(".")[0], os.path.relpath(mine), arch.rpartition(":")[2]
    return TrainingError(
        f"{arch}: another package is called {package!r} and hides {file}; name the file: {file}:{factory}"
    )


def _takes(factory: object, name: str) -> bool:
    if not callable(factory):
        raise TypeError(f"a {type(factory).__name__} cannot be called")
    parameters = inspect.signature(factory).parameters.values()
    return any(p.name == name or p.kind is p.VAR_KEYWORD for p in parameters)


def _described(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
