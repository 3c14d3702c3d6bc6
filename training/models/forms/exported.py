"""`model.pt2`: a program of torch.export, weights inside."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch

from training.errors import TrainingError
from training.models.forms.opened import Asked, OpenedModel, digest_of

FREE = "export it with dynamic_shapes=({0: torch.export.Dim('batch')},)"


def takes(argument: str) -> bool:
    return argument.endswith(".pt2")


def opened(asked: Asked) -> OpenedModel:
    """The network of an exported program, its modules as they were before the export."""
    path = asked.file()
    if asked.weights is not None:
        raise TrainingError(f"{path}: an exported program has its weights inside; leave out --weights")
    program = _loaded(path)
    shape = _shape(path, program)
    if isinstance(shape[0], int):
        raise TrainingError(f"{path}: is made for batches of {shape[0]} alone; {FREE}")
    body = torch.export.unflatten(program)
    for module in body.modules():  # the notes of the export, whose tensors of symbolic sizes cannot be copied
        for node in getattr(getattr(module, "graph", None), "nodes", ()):
            node.meta.clear()
    return OpenedModel(
        body.requires_grad_(False),
        path.stem,
        path.name,
        digest=digest_of([path]),
        side=shape[2] if isinstance(shape[2], int) else None,
        kept=(path,),
    )


def _loaded(path: Path) -> Any:
    if not path.is_file():
        raise TrainingError(f"{path}: no such file")
    level = logging.getLogger("torch").level
    logging.getLogger("torch").setLevel(logging.ERROR)
    try:
        return torch.export.load(path)
    except Exception as error:  # noqa: BLE001  # whatever its format's reader raises
        reason = " ".join(str(error).split())[:200]
        raise TrainingError(f"{path}: not a program of torch.export: {reason}") from None
    finally:
        logging.getLogger("torch").setLevel(level)


def _shape(path: Path, program: Any) -> list[Any]:
    """Sizes of the images that the program takes; those that are free are no numbers."""
    names = list(program.graph_signature.user_inputs)
    nodes = {node.name: node for node in program.graph.nodes if node.op == "placeholder"}
    found = [nodes[name].meta["val"] for name in names if name in nodes]
    if len(found) != 1 or found[0].ndim != 4:
        raise TrainingError(f"{path}: takes {len(found)} inputs; a classifier takes one, images of four axes")
    return list(found[0].shape)
