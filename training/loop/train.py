"""One finished network of a recipe: trained now, resumed, or loaded."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from lightning_fabric import Fabric

from training.data.dataset import Dataset
from training.errors import TrainingError
from training.loop.runs import load_run
from training.loop.trainer import Trainer
from training.models.network import Network
from training.recipes.training import Recipe


def train(
    recipe: Recipe,
    data: Dataset,
    *,
    runs: Path,
    report: Callable[[str, dict[str, Any]], None] = lambda _run, _event: None,
    fabric: Fabric | None = None,
    tensorboard: bool = False,
) -> Network:
    """The finished network of `recipe` in `runs`/<name>: trained now, resumed, or loaded if the run is finished."""
    folder = runs / recipe.name
    if (folder / "weights.safetensors").is_file():
        done, network = load_run(folder, data)
        if done != recipe:
            raise TrainingError(
                f"{folder} holds a run of another version of this recipe; delete it or use another --runs"
            )
        return network

    def named(role: str) -> Network | None:
        name = getattr(recipe, role)
        return load_run(runs / name, data)[1] if name else None

    trainer = Trainer(
        recipe, data, folder, teacher=named("teacher"), init=named("init"), fabric=fabric, tensorboard=tensorboard
    )
    return trainer.run(lambda event: report(recipe.name, event))
