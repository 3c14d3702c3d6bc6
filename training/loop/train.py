"""One finished network of a recipe: trained now, resumed, or loaded."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from lightning_fabric import Fabric

from training.data.dataset import Dataset
from training.errors import TrainingError
from training.loop.runs import load_run, settled
from training.loop.trainer import Trainer
from training.models.network import Network
from training.recipes.training import Recipe
from training.util.processes import chosen_device


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
    recipe = settled(recipe, folder, device=fabric.device.type if fabric else chosen_device("auto"))
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


def settled_all(recipes: dict[str, Recipe], runs: Path) -> dict[str, Recipe]:
    """Recipes by role, each as its run in `runs` is made on this machine: that is what a manifest records."""
    device = chosen_device("auto")
    return {role: settled(recipe, runs / recipe.name, device=device) for role, recipe in recipes.items()}
