"""What a bundle was made with: its data recipe, its data and its evaluation settings."""

from __future__ import annotations

import json

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from gateway.core.loading import Bundle
from training.bundling.answered import answered
from training.bundling.calibrate import enough_to_calibrate
from training.bundling.networks import load_defence
from training.data.dataset import Dataset, load_dataset
from training.errors import TrainingError
from training.models import ModelSpec
from training.recipes.evaluation import Evaluation
from training.recipes.training import DataSpec, Recipe
from training.util.signatures import StepProgress, silent


class Wrapped(BaseModel):
    """What a manifest records of a network that was not trained here: its architecture, weights and data."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    wrapped: str = Field(description="SHA-256 of the weights as they came")
    data: DataSpec
    model: ModelSpec


def load_data(
    recipe: Recipe | Wrapped, progress: StepProgress = silent, *, unread: bool = False, grouped: bool = True
) -> Dataset:
    """The data set that a recipe names, split as it states; `unread` and `grouped` as in `load_dataset`."""
    spec = recipe.data
    return load_dataset(
        spec.source,
        seed=spec.split_seed,
        fractions=spec.fractions,
        classes=spec.classes,
        per_class=spec.per_class,
        size=spec.size,
        resize=spec.resize,
        images_per_class=spec.images_per_class,
        held_out=spec.held_out,
        test_share=spec.test_share,
        pool_scarce=spec.pool_scarce,
        unread=unread,
        grouped=grouped,
        progress=progress,
    )


def enough_images(recipe: Recipe | Wrapped) -> Dataset:
    """The data set with images that are counted but not read; `TrainingError` if they are too few."""
    data = load_data(recipe, unread=True, grouped=False)
    enough_to_calibrate(data)
    return data


def recipe_of(bundle: Bundle) -> tuple[Recipe | Wrapped, Evaluation]:
    """The data recipe and evaluation settings that a bundle was made with, from its manifest."""
    training = bundle.manifest.training
    try:
        kind = Wrapped if "wrapped" in training["standard"] else Recipe
        return kind.model_validate(training["standard"]), Evaluation.model_validate(training["evaluation"])
    except (KeyError, ValidationError) as error:
        reason = str(error).splitlines()[0]
        raise TrainingError(f"{bundle.path}: the manifest does not state how it was made: {reason}") from None


def made_with(bundle: Bundle) -> tuple[Dataset, Evaluation]:
    """The data and evaluation settings that a bundle was made with.

    `TrainingError` unless the data here are the very arrays that the manifest describes.
    """
    recipe, evaluation = recipe_of(bundle)
    data = load_data(recipe)
    recorded, found = json.loads(json.dumps(bundle.manifest.data)), data.describe()
    for split in ("train", "select", "calibrate", "test"):
        if recorded.get(split) != found[split]:
            raise TrainingError(
                f"{data.name}: the {split} split is not the one that {bundle.name} {bundle.version} was made with"
            )
    if not data.labelled:
        data = answered(data, load_defence(bundle).network)
    return data, evaluation
