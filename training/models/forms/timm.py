"""`timm:NAME` with weights of your own, and folders as timm writes them for the Hugging Face hub."""

from __future__ import annotations

import difflib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from torch import nn

from training.errors import TrainingError
from training.models.forms.offline import optional
from training.models.forms.opened import (
    KEPT,
    Asked,
    OpenedModel,
    Stated,
    digest_of,
    imagenet_names,
    needs_weights,
    sized,
)
from training.models.forms.weights import fill

PREFIX = "timm:"


def takes(argument: str) -> bool:
    return argument.startswith(PREFIX)


def opened(asked: Asked) -> OpenedModel:
    """A network of timm; its preprocessing is that of its configuration."""
    needs_weights(asked)
    return _opened(asked, asked.argument.removeprefix(PREFIX), asked.weights, {})


def opened_folder(asked: Asked, folder: Path, config: dict[str, Any]) -> OpenedModel:
    """A folder with `config.json` (`architecture`, `pretrained_cfg`) and `model.safetensors`."""
    weights = None if asked.bare else folder / "model.safetensors"
    classes = config.get("num_classes") or asked.classes
    inside = Asked(asked.argument, weights, classes, asked.side, bare=asked.bare)
    found = _opened(inside, config["architecture"], weights, config)
    return replace(found, arch=KEPT + folder.resolve().name, kept=(folder / "config.json",))


def _opened(asked: Asked, name: str, weights: Path | None, config: dict[str, Any]) -> OpenedModel:
    timm = optional("timm", asked.argument)
    if not timm.is_model(name.partition(".")[0]):
        near = difflib.get_close_matches(name, timm.list_models(), n=3)
        hint = f"; did you mean {' or '.join(near)}?" if near else ""
        raise TrainingError(f"timm has no network {name!r}{hint}")
    arguments = dict(config.get("model_args") or {})

    def make(classes: int) -> nn.Module:
        try:
            return timm.create_model(name, pretrained=False, num_classes=classes, **arguments)
        except (RuntimeError, ValueError, TypeError) as error:
            raise TrainingError(f"timm:{name} cannot be made: {' '.join(str(error).split())[:200]}") from None

    body = sized(asked, make)
    found = None if weights is None else fill(body, weights, classes=None)
    stated: dict[str, Any] = {**cast(Any, body.pretrained_cfg), **(config.get("pretrained_cfg") or {})}
    names = config.get("label_names") or stated.get("label_names")
    count = int(body.num_classes)  # type: ignore[arg-type]
    fixed = stated.get("fixed_input_size")
    return OpenedModel(
        body.eval(),
        name,
        asked.argument,
        digest="" if weights is None else digest_of([weights]),
        classes=list(names) if names and len(names) == count else imagenet_names(count),
        preprocessing=Stated("timm", stated),
        normalise=found,
        side=int(stated["input_size"][-1]) if fixed else None,
    )


def is_timm(config: dict[str, Any]) -> bool:
    """Whether a `config.json` is timm's."""
    return "architecture" in config and "pretrained_cfg" in config


def read_config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    try:
        found = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise TrainingError(f"{path}: not a readable configuration ({error})") from None
    if not isinstance(found, dict):
        raise TrainingError(f"{path}: not a JSON object")
    return found
