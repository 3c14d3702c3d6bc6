"""Run folders: what was trained, on which data, where and when, and with which outcome.

| file | what |
| --- | --- |
| `recipe.json`, `data.json` | the recipe with every default, and the splits by SHA-256 |
| `environment.json` | every start of the run: time, versions, device, threads, precision, memory format and more |
| `checkpoint.json`, `checkpoint-<epoch>.safetensors` | the last finished epoch, from which a run resumes |
| `metrics.csv`, `tensorboard/` | metrics by epoch |
| `outcome.json` | epochs trained, the epoch whose weights were kept, its metrics |
| `lock` | the process that trains; it is deleted at the end |
| `weights.safetensors` | the averaged network; it is written last: a run that has it is finished |
"""

from __future__ import annotations

import json
import platform
import subprocess
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric

from gateway import __version__
from training.data.dataset import Dataset
from training.errors import TrainingError
from training.models import build_model
from training.models.network import Network
from training.recipes.training import Recipe
from training.util.checkpoint import load_weights, write_text
from training.util.precision import machine_precision, say_once

WEIGHTS, LOCK = "weights.safetensors", "lock"
PACKAGES = ("torchvision", "lightning-fabric", "numpy", "safetensors")


def settled(recipe: Recipe, folder: Path, *, device: str) -> Recipe:
    """`recipe` with a precision in place of `auto`: that which the run in `folder` began with, else `device`'s.

    A run that is resumed on another machine keeps its precision, so that its recipe stays the same.
    """
    if recipe.precision != "auto":
        return recipe
    began = _known("recipe", folder / "recipe.json")
    precision, why = began["precision"] if isinstance(began, dict) else "auto", "as the run began"
    if precision == "auto":
        choice = machine_precision(device)
        precision, why = choice.precision, choice.why
    say_once(f"{recipe.name}: precision {precision} ({why})")
    return recipe.model_copy(update={"precision": precision})


def claim_folder(folder: Path, recipe: Recipe, data: Dataset, *, write: bool) -> None:
    """Claim `folder` for this run; `TrainingError` if it holds a run of another recipe or of other data."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in (("recipe", recipe.model_dump(mode="json")), ("data", data.describe())):
        path = folder / f"{name}.json"
        if path.is_file() and _known(name, path) != content:
            raise TrainingError(f"{folder} holds a run of another {name}; use another --runs or delete it")
        if write:
            write_text(path, json.dumps(content, indent=1))
    if write:
        for half in folder.glob("*.part"):
            half.unlink()


def _known(name: str, path: Path) -> object:
    """What a run folder holds; a recipe with the defaults of keys that did not exist when it was written."""
    try:
        content = json.loads(path.read_text("utf-8"))
        return Recipe.model_validate(content).model_dump(mode="json") if name == "recipe" else content
    except (OSError, ValueError):
        return None


def note_start(folder: Path, fabric: Fabric, *, precision: str, layout: str, epoch: int) -> None:
    """Add this start of the run, after `epoch` epochs, to `environment.json`."""
    path = folder / "environment.json"
    try:
        starts = list(json.loads(path.read_text("utf-8")))
    except (OSError, ValueError):
        starts = []
    device = fabric.device
    start = {
        "started": _now(),
        "after_epoch": epoch,
        "palisade": __version__,
        "commit": _commit(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        **{name: version(name) for name in PACKAGES},
        "platform": platform.platform(),
        "device": device.type,
        "device_name": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine(),
        "processes": fabric.world_size,
        "threads": torch.get_num_threads(),
        "precision": precision,
        "memory_format": layout,
    }
    write_text(path, json.dumps([*starts, start], indent=1))


def note_cost(folder: Path, seconds: float) -> None:
    """Write the processor time of this start so far, until an epoch's checkpoint, into `environment.json`."""
    path = folder / "environment.json"
    starts = json.loads(path.read_text("utf-8"))
    starts[-1]["core_seconds"] = round(seconds, 1)
    write_text(path, json.dumps(starts, indent=1))


def core_hours(folder: Path) -> float | None:
    """Processor time of all starts of the run, in hours, of its first process; None where one did not record it."""
    try:
        starts = json.loads((folder / "environment.json").read_text("utf-8"))
        return float(sum(start["core_seconds"] for start in starts)) / 3600
    except (OSError, ValueError, KeyError, TypeError):
        return None


def note_outcome(folder: Path, history: list[dict[str, Any]], *, epochs: int, kept: int) -> None:
    """Write `outcome.json`: of `epochs` planned, those trained, and that whose weights were `kept` (from 1)."""
    content = {
        "finished": _now(),
        "epochs": len(history),
        "stopped_early": len(history) < epochs,
        "kept_epoch": kept,
        "metrics": history[kept - 1],
    }
    write_text(folder / "outcome.json", json.dumps(content, indent=1))


def load_run(folder: Path, data: Dataset) -> tuple[Recipe, Network]:
    """Recipe and finished network of a run folder; `TrainingError` if it is not finished, or was trained on other data.

    Other data or other splits would let a network, or the one it starts from, have seen what it is calibrated on.
    """
    if not (folder / WEIGHTS).is_file():
        raise TrainingError(f"{folder} is not a finished run; train it first (`palisade train`)")
    trained_on = folder / "data.json"
    if trained_on.is_file() and _known("data", trained_on) != data.describe():
        raise TrainingError(f"{folder} was trained on other data or splits than {data.name}; train it again")
    recipe = recipe_at(folder)
    side, channels = data.train.x.shape[2:]
    model = build_model(recipe.model, classes=len(data.classes), mean=[0.0] * channels, std=[1.0] * channels, side=side)
    load_weights(folder / WEIGHTS, model)
    return recipe, model.eval()


def recipe_at(folder: Path) -> Recipe:
    """The recipe of a run folder; `TrainingError` if it holds none, or one of another version."""
    path = folder / "recipe.json"
    if not path.is_file():
        raise TrainingError(f"{folder} is not a finished run; train it first (`palisade train`)")
    try:
        return Recipe.model_validate_json(path.read_text("utf-8"))
    except ValueError:
        raise TrainingError(f"{path} is not a recipe of this version; train it again") from None


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _commit() -> str | None:
    """The commit of the checkout that this package runs from, `-dirty` if it was changed; None outside of one."""
    here = Path(__file__).parent
    git = ["git", "-C", str(here)]
    try:
        subprocess.run([*git, "ls-files", "--error-unmatch", Path(__file__).name], check=True, capture_output=True)  # noqa: S603
        completed = subprocess.run(  # noqa: S603
            [*git, "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty"],
            check=True,
            capture_output=True,
            text=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return completed.stdout.strip()
