"""Every form in which a network may come, one file each; `open_model` finds out which one an argument is."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from torch import nn

from training.errors import TrainingError
from training.models.forms import exported, huggingface, onnx, own_code, timm, torchvision
from training.models.forms.labels import distinct, read_labels
from training.models.forms.opened import KEPT, Asked, OpenedModel
from training.models.onnx_graph.kept import without_weights


@dataclass(frozen=True)
class Form:
    """How a network may come: as the user writes it, whether an argument is of it, and how it is opened."""

    written: str
    takes: Callable[[str], bool]
    opened: Callable[[Asked], OpenedModel]


# The first that takes an argument opens it.
FORMS = [
    Form("torchvision:NAME", torchvision.takes, torchvision.opened),
    Form("timm:NAME", timm.takes, timm.opened),
    Form("model.onnx", onnx.takes, onnx.opened),
    Form("model.pt2", exported.takes, exported.opened),
    Form("a Hugging Face folder", huggingface.takes, huggingface.opened),
    Form("FILE.py:FACTORY", own_code.takes_file, own_code.opened),
    Form("MODULE:FACTORY", own_code.takes_module, own_code.opened),
]
WRITTEN = ", ".join(form.written for form in FORMS[:-1]) + f" or {FORMS[-1].written}"


def is_form(argument: str) -> bool:
    """Whether `argument` is written as some form of network is; whether it exists is not looked at."""
    return any(form.takes(argument) for form in FORMS)


def open_model(
    argument: str,
    *,
    weights: Path | None = None,
    classes: int | None = None,
    labels: Path | None = None,
    side: int | None = None,
) -> OpenedModel:
    """The trained network that `argument` names, in evaluation mode; nothing is fetched from anywhere.

    `classes` and `side` are used where the form leaves them open. Raises `TrainingError`, in one line: what cannot be
    read, and the way out.
    """
    if weights is not None and not weights.is_file():
        raise TrainingError(f"{weights}: no such file")
    opened = _form(argument).opened(Asked(argument, weights, classes, side))
    opened.body.eval().requires_grad_(False)
    names = opened.classes if labels is None else read_labels(labels)
    return replace(opened, classes=None if names is None else distinct(names))


def architecture(argument: str, *, classes: int, side: int, kept: Path | None = None) -> nn.Module:
    """The network that `argument` names, its weights to be loaded or trained; `kept` is where a bundle keeps its files.

    Raises `TrainingError` as `open_model`.
    """
    return _form(argument).opened(Asked(argument, classes=classes, side=side, bare=True, kept=kept)).body


def keep(opened: OpenedModel, folder: Path) -> None:
    """Copy what `opened` was made of into a bundle's `folder`; of an ONNX file the graph alone, without weights."""
    inside = folder / opened.arch.removeprefix(KEPT) if opened.arch.startswith(KEPT) else folder
    for path in opened.kept:
        inside.mkdir(parents=True, exist_ok=True)
        copy = without_weights if path.suffix == ".onnx" else shutil.copyfile
        copy(path, inside / path.name)


def _form(argument: str) -> Form:
    for form in FORMS:
        if form.takes(argument):
            return form
    raise TrainingError(f"{argument}: unknown form of model; use {WRITTEN}")
