"""Networks kept as files from which training goes on later: `training/weights/*.safetensors`.

The tensors are float32. The file's metadata have one entry, `training`, a JSON object (`Kept`): the recipe with every
default, the data and the groups of each split by SHA-256, epochs and core hours, and the same of what it started from.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from training.data.dataset import SPLITS, Dataset
from training.errors import TrainingError
from training.loop.runs import WEIGHTS, core_hours, recipe_at
from training.models import ModelSpec, build_model
from training.models.network import Network
from training.recipes.training import Recipe
from training.util.checkpoint import write_tensors, write_text

SUFFIX, ENTRY, INIT = ".safetensors", "training", "init.json"
PACKAGE = Path(__file__).parents[1]


class Kept(BaseModel):
    """What a file of weights states of the training behind them, that of the network it started from included."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    recipe: Recipe
    data: dict[str, Any] = Field(description="`Dataset.describe` of the last training")
    groups: dict[str, str] = Field(description="SHA-256 of the sorted group ids of train, select and calibrate")
    epochs: int = Field(ge=0, description="of the last training")
    core_hours: float | None = Field(ge=0, description="processor time of it; None where it was not recorded")
    started_from: Kept | None = None
    averaged_with: list[Kept] = Field([], description="trainings whose networks it is the mean with, weight by weight")

    @property
    def totals(self) -> tuple[int, float]:
        """Epochs and recorded core hours, of this training and all that are in it; shared ones count once."""
        history = self.history
        return sum(each["epochs"] for each in history), sum(each["core_hours"] or 0.0 for each in history)

    @property
    def history(self) -> list[dict[str, Any]]:
        """Recipe, epochs and core hours of each training, the first one first; those that two share come once."""
        before = self.started_from.history if self.started_from else []
        found = [*before, self.model_dump(mode="json", include={"recipe", "epochs", "core_hours"})]
        for other in self.averaged_with:
            found += [each for each in other.history if each not in found]
        return found


def is_file_of_weights(name: str) -> bool:
    """Whether the name in a recipe (`init`, `teacher`; a bundle's networks) is that of a file of weights."""
    return name.endswith(SUFFIX)


def weights_at(name: str) -> Path:
    """The file of that name: here, or in this package (`weights/...`); `TrainingError` where there is none."""
    for path in (Path(name), PACKAGE / name):
        if path.is_file():
            return path
    raise TrainingError(f"there is no file {name}, neither here nor in the package {PACKAGE.name}")


def groups_of(data: Dataset) -> dict[str, str]:
    """SHA-256 of the sorted group ids of each split but test: the same for a data set and for a part of its frames."""
    return {
        name: hashlib.sha256(np.unique(getattr(data, name).group).astype(np.int64).tobytes()).hexdigest()
        for name in SPLITS
        if name != "test"
    }


def read_kept(path: Path) -> Kept:
    """What the file states of its training; `TrainingError` if it is no such file."""
    try:
        with safe_open(path, framework="np") as file:
            return Kept.model_validate_json((file.metadata() or {})[ENTRY])
    except (OSError, SafetensorError) as error:
        raise TrainingError(f"{path}: not a file of weights: {str(error).splitlines()[0]}") from None
    except (KeyError, ValidationError):
        raise TrainingError(
            f"{path}: its metadata do not state how it was trained; make it with `palisade weights`"
        ) from None


def load_kept(path: Path, model: ModelSpec | None, data: Dataset) -> tuple[Kept, Network]:
    """The file's network, which must be such a `model` if one is given, trained on splits of the same groups as `data`.

    Whether pixels enter as logarithms may differ: a training may begin with it. Other groups would let the network have
    seen what it is judged or calibrated on. Raises `TrainingError`.
    """
    kept = read_kept(path)
    if kept.groups != groups_of(data):
        raise TrainingError(f"{path} was trained on other groups than the splits of {data.name} have; train it anew")
    if model is not None and not goes_on(kept.recipe.model, model):
        raise TrainingError(f"{path} is of the model {_said(kept.recipe.model)}, not of {_said(model)}")
    return kept, network_in(path, kept, classes=len(data.classes), side=data.train.x.shape[1])


def goes_on(kept: ModelSpec, model: ModelSpec) -> bool:
    """Whether a training of `model` may begin with weights of `kept`: all but how pixels enter is the same."""
    return kept.model_copy(update={"logarithm": model.logarithm}) == model


def network_in(path: Path, kept: Kept, *, classes: int, side: int) -> Network:
    """The network in a file of weights, in evaluation mode; `TrainingError` if its tensors are of another one."""
    try:
        tensors = load_file(path)
        channels = tensors["normalise.mean"].numel() if "normalise.mean" in tensors else 3
        network = build_model(
            kept.recipe.model, classes=classes, mean=[0.0] * channels, std=[1.0] * channels, side=side
        )
        network.load_state_dict(tensors)
    except (OSError, RuntimeError, SafetensorError) as error:
        raise TrainingError(f"{path} does not fit: {str(error).splitlines()[-1].strip()}") from None
    return network.eval()


def note_init(folder: Path, kept: Kept) -> None:
    """Keep in a run folder what the run starts from, unless it has begun already."""
    if not (folder / "checkpoint.json").is_file():
        folder.mkdir(parents=True, exist_ok=True)
        write_text(folder / INIT, kept.model_dump_json(indent=1))


def keep_run(folder: Path, out: Path, data: Dataset) -> Kept:
    """Write the network of a run to the file `out`: the finished one, or the averaged one of its last checkpoint."""
    kept = kept_of(folder, data)
    try:
        tensors = _tensors(folder, _checkpoint(folder)["tensors"])
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise _damaged(folder, error) from None
    write_kept(out, tensors, kept)
    return kept


def kept_of(folder: Path, data: Dataset) -> Kept:
    """What there is to state of a run's training, that of the network it started from included."""
    recipe, hours = recipe_at(folder), core_hours(folder)
    try:
        epochs = int(_checkpoint(folder)["epoch"])
        started = Kept.model_validate_json((folder / INIT).read_text("utf-8")) if (folder / INIT).is_file() else None
    except (OSError, ValueError, KeyError) as error:
        raise _damaged(folder, error) from None
    return Kept(
        recipe=recipe,
        data=data.describe(),
        groups=groups_of(data),
        epochs=epochs,
        core_hours=None if hours is None else round(hours, 3),
        started_from=started,
    )


def _checkpoint(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "checkpoint.json").read_text("utf-8"))
    return content


def _damaged(folder: Path, error: Exception) -> TrainingError:
    return TrainingError(f"{folder}: no epoch is finished, or its files are damaged: {error}")


def averaged(out: Path, others: Sequence[Path]) -> Kept:
    """Replace the network in the file `out` by the mean of itself and `others`, each tensor of numbers by its mean.

    A mean of networks that were trained on from one and the same is often better than each of them (Wortsman et al.
    2022, arXiv 2203.05482). `TrainingError` for other models, or other splits.
    """
    kept, tensors = read_kept(out), load_file(out)
    with_them = []
    for path in others:
        other, more = read_kept(path), load_file(path)
        if other.recipe.model != kept.recipe.model or other.groups != kept.groups:
            raise TrainingError(f"{path} is of another model or of other splits than {out}")
        tensors = {
            name: tensor + more[name] if tensor.is_floating_point() else tensor for name, tensor in tensors.items()
        }
        with_them.append(other)
    n = 1 + len(others)
    mean = {name: tensor / n if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}
    kept = kept.model_copy(update={"averaged_with": [*kept.averaged_with, *with_them]})
    write_kept(out, mean, kept)
    return kept


def write_kept(out: Path, tensors: dict[str, Tensor], kept: Kept) -> None:
    """Write a file of weights, atomically."""
    out.parent.mkdir(parents=True, exist_ok=True)
    write_tensors(out, tensors, metadata={ENTRY: kept.model_dump_json()})
    out.chmod(0o644)  # safetensors makes private files


def _tensors(folder: Path, checkpoint: str) -> dict[str, Tensor]:
    if (folder / WEIGHTS).is_file():
        return load_file(folder / WEIGHTS)
    prefix = "average/"
    found = load_file(folder / checkpoint)
    return {name.removeprefix(prefix): tensor for name, tensor in found.items() if name.startswith(prefix)}


def _said(model: ModelSpec) -> str:
    return f"{model.arch} (width {model.width}, blocks {list(model.blocks)}, stem stride {model.stem_stride})"
