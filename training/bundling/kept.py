"""What a stopped run leaves for the next: the exported graph with its constants, and the benign scores.

It lies beside the bundle, in `<bundle>.kept.part`, under a key of all that it depends on, and is deleted once the
bundle is finished. Images are decoded again.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from torch import nn

from gateway import __version__
from gateway.core.manifest import GraphSpec, Part
from training.data.dataset import Dataset
from training.util.module_modes import frozen, seeded

_KEY, _GRAPHS, _SCORES = "key.json", "graphs.json", "scores.npz"


class Kept:
    """The folder `place`; what is there under another key is deleted."""

    def __init__(self, place: Path, key: Mapping[str, Any]) -> None:
        self._place, text = place, json.dumps(key, sort_keys=True)
        known = place / _KEY
        if not known.is_file() or known.read_text("utf-8") != text:
            shutil.rmtree(place, ignore_errors=True)
            place.mkdir(parents=True)
            known.write_text(text, "utf-8")

    def graph(self, folder: Path, make: Callable[[], dict[Part, GraphSpec]]) -> dict[Part, GraphSpec]:
        """The parts that `make` writes into `folder`, with all that it writes there, or those of the stopped run."""
        kept, draft = self._place / "graph", self._place / "graph.draft"
        if not kept.is_dir():
            made = make()
            shutil.rmtree(draft, ignore_errors=True)
            shutil.copytree(folder, draft)
            parts = {part: spec.model_dump(mode="json") for part, spec in made.items()}
            (draft / _GRAPHS).write_text(json.dumps(parts), "utf-8")
            draft.rename(kept)
            return made
        shutil.copytree(kept, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns(_GRAPHS))
        parts = json.loads((kept / _GRAPHS).read_text("utf-8"))
        return {part: GraphSpec.model_validate(spec) for part, spec in parts.items()}

    def arrays(self, make: Callable[[], dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
        """The arrays that `make` computes, or those of the stopped run."""
        kept, draft = self._place / _SCORES, self._place / f"draft-{_SCORES}"
        if not kept.is_file():
            made = make()
            np.savez(draft, allow_pickle=False, **made)
            draft.rename(kept)
            return made
        with np.load(kept, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}

    def drop(self) -> None:
        """Delete the folder."""
        shutil.rmtree(self._place, ignore_errors=True)


def key_of(networks: Mapping[str, nn.Module], data: Dataset, settings: Mapping[str, Any]) -> dict[str, Any]:
    """What graph and scores depend on: versions, networks, data and `settings`, as JSON has them.

    Of the networks' code, which may be a user's, it has the answers to random images.
    """
    return {
        "palisade": __version__,
        "torch": torch.__version__,
        "onnxruntime": onnxruntime.__version__,
        "networks": {role: _digest(network, data) for role, network in networks.items()},
        "data": data.describe(),
        "settings": dict(settings),
    }


@torch.no_grad()
def _digest(network: nn.Module, data: Dataset) -> str:
    found = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode() + tensor.cpu().numpy().tobytes())
    height, width, channels = data.select.x.shape[1:]
    with frozen(network):
        answers = network(torch.rand(2, channels, height, width, generator=seeded(0)))
    found.update(answers.double().round(decimals=2).cpu().numpy().tobytes())
    return found.hexdigest()
