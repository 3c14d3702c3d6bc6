"""Checkpoints without pickle: tensors in safetensors (optimiser's too), everything else in JSON, written atomically."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn, optim

from training.errors import TrainingError

WEIGHTS, STATE = "weights.safetensors", "state.json"


@dataclass(frozen=True)
class Progress:
    """Where a run stands: epochs done over all stages, and the metrics of each."""

    epoch: int
    history: list[dict[str, Any]]


def save_checkpoint(
    folder: Path, *, model: nn.Module, average: nn.Module, optimizer: optim.Optimizer, progress: Progress
) -> None:
    """Write network, averaged network and optimiser; the JSON file goes last and names its tensor file."""
    tensors = {f"model/{k}": v for k, v in model.state_dict().items()}
    tensors |= {f"average/{k}": v for k, v in average.state_dict().items()}
    parameters = [p for g in optimizer.param_groups for p in g["params"]]
    for i, parameter in enumerate(parameters):
        buffer = optimizer.state.get(parameter, {}).get("momentum_buffer")
        if buffer is not None:
            tensors[f"momentum/{i}"] = buffer
    name = f"checkpoint-{progress.epoch}.safetensors"
    write_tensors(folder / name, tensors)
    _write_text(
        folder / "checkpoint.json", json.dumps({"tensors": name, "epoch": progress.epoch, "history": progress.history})
    )
    for old in folder.glob("checkpoint-*.safetensors"):
        if old.name != name:
            old.unlink()


def load_checkpoint(
    folder: Path, *, model: nn.Module, average: nn.Module, optimizer: optim.Optimizer
) -> Progress | None:
    """Restore what `save_checkpoint` wrote; None where there is none. `TrainingError` if it does not fit."""
    path = folder / "checkpoint.json"
    if not path.is_file():
        return None
    try:
        state = json.loads(path.read_text("utf-8"))
        progress = Progress(int(state["epoch"]), list(state["history"]))
        tensors = load_file(folder / state["tensors"])
        model.load_state_dict(_below(tensors, "model/"))
        average.load_state_dict(_below(tensors, "average/"))
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        raise TrainingError(f"{path}: cannot resume: {str(error).splitlines()[0]}") from None
    parameters = [p for g in optimizer.param_groups for p in g["params"]]
    for i, buffer in _below(tensors, "momentum/").items():
        optimizer.state[parameters[int(i)]]["momentum_buffer"] = buffer
    return progress


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


def write_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    """Write a safetensors file so that it is whole or not there."""
    temporary = path.with_suffix(".part")
    save_file({key: value.detach().contiguous().clone() for key, value in tensors.items()}, temporary)
    temporary.replace(path)


def _write_text(path: Path, text: str) -> None:
    temporary = path.with_suffix(".part")
    temporary.write_text(text, "utf-8")
    temporary.replace(path)
