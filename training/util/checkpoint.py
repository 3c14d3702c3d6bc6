"""Checkpoints without pickle: tensors in safetensors (optimiser's too), everything else in JSON, written atomically."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn, optim

from gateway.atomic import replacing
from training.errors import TrainingError

# A disk, a quota or a file that is full; safetensors gives an error's words alone.
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@dataclass(frozen=True)
class Progress:
    """Where a run stands.

    Epochs done over all stages, the metrics of each, the loss scale of fp16, and the neurons ({layer: channels}) that
    SNS stabilises until they are ranked again.
    """

    epoch: int
    history: list[dict[str, Any]]
    scaler: dict[str, Any] = field(default_factory=dict)
    sensitive: dict[str, Tensor] = field(default_factory=dict)


def save_checkpoint(
    folder: Path, *, networks: dict[str, nn.Module], optimizer: optim.Optimizer, progress: Progress
) -> None:
    """Write networks, each under its name, and optimiser; the JSON file goes last and names its tensor file.

    Raises `TrainingError` if the disk is full; what was written before is whole and stays.
    """
    tensors = {f"{name}/{k}": v for name, network in networks.items() for k, v in network.state_dict().items()}
    for i, parameter in enumerate(_parameters(optimizer)):
        buffer = optimizer.state.get(parameter, {}).get("momentum_buffer")
        if buffer is not None:
            tensors[f"momentum/{i}"] = buffer
    tensors |= {f"sensitive/{layer}": channels for layer, channels in progress.sensitive.items()}
    name = f"checkpoint-{progress.epoch}.safetensors"
    write_tensors(folder / name, tensors)
    state = {"tensors": name, "epoch": progress.epoch, "history": progress.history}
    write_text(folder / "checkpoint.json", json.dumps(state | ({"scaler": progress.scaler} if progress.scaler else {})))
    for old in folder.glob("checkpoint-*.safetensors"):
        if old.name != name:
            old.unlink()


def load_checkpoint(folder: Path, *, networks: dict[str, nn.Module], optimizer: optim.Optimizer) -> Progress | None:
    """Restore what `save_checkpoint` wrote; None where there is none. `TrainingError` if it does not fit.

    Tensors go where the networks' are, in their memory format: a run may resume on another device. Sensitive neurons
    stay on the CPU.
    """
    path = folder / "checkpoint.json"
    if not path.is_file():
        return None
    try:
        state = json.loads(path.read_text("utf-8"))
        tensors = load_file(folder / state["tensors"])
        progress = Progress(
            int(state["epoch"]), list(state["history"]), dict(state.get("scaler", {})), _below(tensors, "sensitive/")
        )
        for name, network in networks.items():
            network.load_state_dict(_below(tensors, f"{name}/"))
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        raise TrainingError(f"{path}: cannot resume: {str(error).splitlines()[0]}") from None
    parameters = _parameters(optimizer)
    for i, buffer in _below(tensors, "momentum/").items():
        parameter = parameters[int(i)]
        optimizer.state[parameter]["momentum_buffer"] = torch.empty_like(parameter).copy_(buffer)
    return progress


def _parameters(optimizer: optim.Optimizer) -> list[Tensor]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def save_weights(path: Path, model: nn.Module) -> None:
    """Write a network's tensors, atomically."""
    write_tensors(path, dict(model.state_dict()))


def load_weights(path: Path, model: nn.Module) -> None:
    """Read tensors into `model`; `TrainingError` if the file is missing or of another network."""
    try:
        model.load_state_dict(load_file(path))
    except (OSError, RuntimeError, SafetensorError) as error:
        raise TrainingError(f"{path}: {str(error).splitlines()[0]}") from None


def _below(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}


def write_tensors(path: Path, tensors: dict[str, Tensor], *, metadata: dict[str, str] | None = None) -> None:
    """Write a safetensors file so that it is whole or absent; `TrainingError` if the disk is full."""
    with _whole(path) as temporary:
        copies = {key: value.detach().cpu().contiguous().clone() for key, value in tensors.items()}
        save_file(copies, temporary, metadata=metadata)


def write_text(path: Path, text: str) -> None:
    """Write a text file so that it is whole or absent; `TrainingError` if the disk is full."""
    with _whole(path) as temporary:
        temporary.write_text(text, "utf-8")


@contextmanager
def _whole(path: Path) -> Iterator[Path]:
    """`gateway.atomic.replacing`, with `TrainingError` if the disk is full or a tensor cannot be written."""
    try:
        with replacing(path) as draft:
            yield draft
    except (OSError, SafetensorError) as error:
        reason = next((os.strerror(number) for number in FULL if os.strerror(number) in str(error)), None)
        if reason is not None:
            raise TrainingError(
                f"{path}: {reason}; earlier checkpoints are intact: free disk space and run the same command again"
            ) from None
        if isinstance(error, OSError):
            raise
        raise TrainingError(f"{path}: {error}") from None
