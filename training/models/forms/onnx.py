"""`model.onnx`."""

from __future__ import annotations

import ast
import json
from typing import Any

from training.errors import TrainingError
from training.models.forms.opened import BYTES, Asked, OpenedModel, Stated, digest_of
from training.models.onnx_graph import onnx_body
from training.models.onnx_graph.read import read_onnx

LABELS = ("labels", "classes", "class_names", "names", "id2label")
SIDE = 224  # of images where neither the file nor the command says


def takes(argument: str) -> bool:
    return argument.endswith(".onnx")


def opened(asked: Asked) -> OpenedModel:
    """The network in an ONNX file, for images of its own size, else of the asked one."""
    path = asked.file()
    if asked.weights is not None:
        raise TrainingError(f"{path}: an ONNX file has its weights inside; leave out --weights")
    file = read_onnx(path)
    if file.side is not None and asked.side is not None and file.side != asked.side and asked.bare:
        raise TrainingError(f"{path}: takes images of {file.side} pixels, not of {asked.side}")
    body = onnx_body(path, file, file.side or asked.side or SIDE)
    return OpenedModel(
        body,
        path.stem,
        path.name,
        digest=digest_of([path]),
        classes=_labels(file.metadata),
        preprocessing=Stated("onnx", file.metadata) if file.metadata else None,
        normalise=BYTES if file.integer else None,
        side=file.side,
        kept=(path,),
    )


def _labels(metadata: dict[str, str]) -> list[str] | None:
    """Names of the classes as exporters write them: a list, or names by index, in JSON or Python; or a line each."""
    text = next((metadata[name] for name in LABELS if metadata.get(name)), None)
    if text is None:
        return None
    found = _literal(text)
    if found is None:
        lines = [line.strip() for line in (text.splitlines() if "\n" in text else text.split(","))]
        return [line for line in lines if line] or None
    if isinstance(found, dict):
        return [str(found[key]) for key in sorted(found, key=int)] if all(str(k).isdigit() for k in found) else None
    return [str(name) for name in found] if isinstance(found, (list, tuple)) else None


def _literal(text: str) -> Any:
    """What is written in JSON, or as Python prints it (Ultralytics: `{0: 'tench', 1: 'goldfish'}`); None if neither."""
    for read in (json.loads, ast.literal_eval):
        try:
            return read(text.strip())
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            pass
    return None
