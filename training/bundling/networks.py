"""The torch side of a bundle: networks and constants as tensors, so that anyone can attack what is served.

The file `networks.safetensors` of a bundle holds `standard/...`, `companion/...` and `constants/...`; the architectures
are in the manifest. Serving never reads it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.numpy import load_file as load_numpy
from safetensors.torch import load_file, save_file
from torch import Tensor

from gateway.core.loading import Bundle
from gateway.core.manifest import InputSpec
from training.defence.constants import Constants
from training.defence.graph import DefenceGraph
from training.defence.localisers import LOCALISER
from training.errors import TrainingError
from training.export.fold import folded
from training.export.stored import exact_in_half
from training.models import ModelSpec, build_model
from training.models.network import Network

NETWORKS = "networks.safetensors"
SOURCE = "source"  # files of a bundle that an architecture is made of which came as one
ROLES = ("standard", "companion")
SMALL = 256  # elements; smaller tensors stay as they are


def save_networks(path: Path, *, standard: Network, companion: Network | None, constants: Constants) -> None:
    """Write the networks and the constants of a defence graph; `TrainingError` if there is no room.

    Tensors that float16 holds exactly are written in it, half as large.
    """
    tensors = {f"standard/{key}": value for key, value in standard.state_dict().items()}
    if companion is not None:
        tensors |= {f"companion/{key}": value for key, value in companion.state_dict().items()}
    tensors |= {f"constants/{key}": value for key, value in constants.tensors().items()}
    try:
        save_file({key: _stored(value.detach().cpu()) for key, value in tensors.items()}, path)
    except SafetensorError as error:
        raise TrainingError(f"{path}: cannot be written: {error}") from None
    path.chmod(0o644)  # safetensors makes private files; a bundle is read by other users (containers)


def _stored(tensor: Tensor) -> Tensor:
    exact = tensor.dtype == torch.float32 and tensor.numel() >= SMALL and exact_in_half(tensor.numpy())
    return (tensor.half() if exact else tensor).contiguous().clone()


def networks_sha256(path: Path) -> str:
    """One digest of the networks in the file `path`, by names, shapes and values; constants don't count."""
    found = hashlib.sha256()
    with _rebuilding(path):
        tensors = load_numpy(path)
    for name in sorted(name for name in tensors if not name.startswith("constants/")):
        array = tensors[name]
        found.update(f"{name} {array.dtype} {array.shape}\n".encode() + array.tobytes())
    return found.hexdigest()


def load_defence(bundle: Bundle) -> DefenceGraph:
    """The bundle's defence graph in torch, BatchNorm folded as in the served one; `TrainingError` if it ships none."""
    path, manifest = bundle.path / NETWORKS, bundle.manifest
    with _rebuilding(path):
        roles = ROLES if manifest.companion else ROLES[:1]
        models = {role: ModelSpec.model_validate(manifest.training[role]["model"]) for role in roles}
        layers = {"standard": {layer.name: layer.channels for layer in manifest.layers}}
        networks = load_networks(path, models, classes=len(manifest.classes), spec=manifest.input, layers=layers)
        constants = load_constants(path)
        return defence_graph(
            networks,
            constants,
            side=manifest.input.height,
            scores=manifest.scores,
            localiser=manifest.localiser,
        )


def load_constants(path: Path) -> Constants:
    """The constants in a bundle's file of networks."""
    return Constants.of(_below(_read(path), "constants/"))


def defence_graph(
    networks: Mapping[str, Network],
    constants: Constants,
    *,
    side: int,
    scores: Sequence[str] | None = None,
    localiser: str = LOCALISER,
) -> DefenceGraph:
    """The defence graph of networks by role, with BatchNorm folded; `side` is the images'."""
    companion = networks.get("companion")
    return DefenceGraph(
        folded(networks["standard"], side=side),
        None if companion is None else folded(companion, side=side),
        constants,
        scores=scores,
        localiser=localiser,
    )


def load_networks(
    path: Path,
    models: Mapping[str, ModelSpec],
    *,
    classes: int,
    spec: InputSpec,
    layers: Mapping[str, Mapping[str, int]] = {},
) -> dict[str, Network]:
    """The networks of a bundle's file, by role, BatchNorm included; `TrainingError` if they are not such `models`.

    `layers` are those to tap, by role, where the manifest has them.
    """
    kept = path.parent / SOURCE
    networks = {}
    with _rebuilding(path):
        tensors = _read(path)
        mean, std = [0.0] * spec.channels, [1.0] * spec.channels
        reverse = spec.normalise is not None and spec.normalise.channel_order == "bgr"
        for role, model in models.items():
            network = build_model(
                model,
                classes=classes,
                mean=mean,
                std=std,
                side=spec.height,
                reverse=reverse and role == ROLES[0],
                kept=kept if kept.is_dir() else None,
                layers=layers.get(role),
            )
            network.load_state_dict(_below(tensors, role + "/"))
            networks[role] = network.eval()
    return networks


@contextmanager
def _rebuilding(path: Path) -> Iterator[None]:
    try:
        yield
    except TrainingError:
        raise
    except (OSError, KeyError, TypeError, ValueError, RuntimeError, SafetensorError) as error:
        raise TrainingError(f"{path}: cannot rebuild the networks: {str(error).splitlines()[0]}") from None


def _read(path: Path) -> dict[str, Tensor]:
    """The file's tensors, in float32 where they were stored in float16."""
    return {key: value.float() if value.dtype == torch.float16 else value for key, value in load_file(path).items()}


def _below(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
