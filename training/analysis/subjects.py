"""What is analysed: the networks of a bundle or of a training run, with the data that they were made with."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from gateway.core.loading import load_bundle
from gateway.core.manifest import MANIFEST
from training.bundling.networks import load_defence
from training.bundling.provenance import load_data, made_with
from training.data.dataset import Dataset
from training.errors import TrainingError
from training.loop.runs import load_run
from training.models.network import Network
from training.recipes.training import Recipe


@dataclass(frozen=True)
class Subject:
    """Networks by role or run, and their data."""

    name: str
    data: Dataset
    networks: dict[str, Network]


def load_subject(path: Path) -> Subject:
    """The networks of the bundle or run folder `path`; `TrainingError` if it is neither, or its data are missing."""
    if (path / MANIFEST).is_file():
        bundle = load_bundle(path)
        data, _ = made_with(bundle)
        defence = load_defence(bundle)
        networks = {"answering network": defence.network}
        if defence.companion is not None:
            networks["companion"] = defence.companion
        return Subject(f"{bundle.name} {bundle.version}", data, networks)
    recipe_path = path / "recipe.json"
    if not recipe_path.is_file():
        raise TrainingError(f"{path} is neither a bundle nor a run folder: it has no {MANIFEST} and no recipe.json")
    try:
        recipe = Recipe.model_validate_json(recipe_path.read_text("utf-8"))
    except ValidationError as error:
        raise TrainingError(f"{recipe_path}: {error.errors()[0]['msg']}") from None
    data = load_data(recipe)
    return Subject(recipe.name, data, {recipe.name: load_run(path, data)[1]})
