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
from training.loop.weights import is_file_of_weights, kept_of, load_kept, note_init, weights_at
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

    teacher = _teacher(recipe, data, runs)
    init = _init(recipe, data, runs)
    trainer = Trainer(recipe, data, folder, teacher=teacher, init=init, fabric=fabric, tensorboard=tensorboard)
    return trainer.run(lambda event: report(recipe.name, event))


def _teacher(recipe: Recipe, data: Dataset, runs: Path) -> Network | None:
    """The recipe's teacher, a finished run or a file of weights, of whatever model."""
    if not recipe.teacher:
        return None
    if is_file_of_weights(recipe.teacher):
        return load_kept(weights_at(recipe.teacher), None, data)[1]
    return load_run(runs / recipe.teacher, data)[1]


def _init(recipe: Recipe, data: Dataset, runs: Path) -> Network | None:
    """What the recipe's run starts from: a finished run, or a file of weights; either is noted in the run folder."""
    if not recipe.init:
        return None
    if not is_file_of_weights(recipe.init):
        before = runs / recipe.init
        network = load_run(before, data)[1]
        if (before / "checkpoint.json").is_file():  # whoever lacks room may have deleted it from a finished run
            note_init(runs / recipe.name, kept_of(before, data))
        return network
    kept, network = load_kept(weights_at(recipe.init), recipe.model, data)
    note_init(runs / recipe.name, kept)
    return network


def settled_all(recipes: dict[str, Recipe], runs: Path) -> dict[str, Recipe]:
    """Recipes by role, each as its run in `runs` is made on this machine: that is what a manifest records."""
    device = chosen_device("auto")
    return {role: settled(recipe, runs / recipe.name, device=device) for role, recipe in recipes.items()}
