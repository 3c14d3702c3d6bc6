"""The recipes that come with the package: bundles are coherent, and those for a GPU run in small on a CPU."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import yaml

import training
from tests.training.toy import CLASSES, SIDE, toy_dataset
from training.bundling.recipe import load_bundle_recipe
from training.loop.trainer import Trainer
from training.loop.weights import goes_on, is_file_of_weights, network_in, read_kept, weights_at
from training.models import build_model
from training.recipes.training import Recipe, load_recipe

CONFIGS = Path(training.__file__).parent / "configs"
BUNDLES = [p for p in sorted(CONFIGS.rglob("*.yaml")) if "companion" in (yaml.safe_load(p.read_text("utf-8")) or {})]
OF_KEPT_FILES = [path for path in BUNDLES if is_file_of_weights(load_bundle_recipe(path).standard)]
GOING_ON = [
    path
    for path in sorted(CONFIGS.rglob("*.yaml"))
    if is_file_of_weights((yaml.safe_load(path.read_text("utf-8")) or {}).get("init") or "")
]
CLASSES_OF = {"npz:gtsrb32": 43, "npz:cifar10": 10}
FOR_A_GPU = sorted(p for p in (CONFIGS / "cifar10-resnet18").glob("*.yaml") if p not in BUNDLES)


def named(path: Path) -> str:
    return f"{path.parent.name}/{path.stem}"


@pytest.mark.parametrize("path", [p for p in BUNDLES if p not in OF_KEPT_FILES], ids=named)
def test_a_bundle_is_of_two_recipes_that_belong_together(path: Path) -> None:
    bundle = load_bundle_recipe(path)
    standard, companion = load_recipe(path.parent / bundle.standard), load_recipe(path.parent / bundle.companion)
    assert standard.data == companion.data
    assert standard.model == companion.model
    assert companion.init == companion.teacher == standard.name


@pytest.mark.parametrize("path", OF_KEPT_FILES, ids=named)
def test_a_bundle_of_kept_files_has_networks_of_the_same_splits(path: Path) -> None:
    bundle = load_bundle_recipe(path)
    standard, companion = read_kept(weights_at(bundle.standard)), read_kept(weights_at(bundle.companion))
    assert standard.recipe.data == companion.recipe.data
    assert standard.groups == companion.groups


def test_the_full_width_is_that_of_resnet18() -> None:
    spec = load_recipe(CONFIGS / "cifar10-resnet18" / "companion.yaml").model
    network = build_model(spec, classes=10, mean=[0.5] * 3, std=[0.25] * 3)
    assert sum(parameter.numel() for parameter in network.parameters()) == 11_173_962


def shrunk(recipe: Recipe) -> Recipe:
    """Two steps in each stage, all that is due in it included, of a network of width 4."""
    content = recipe.model_dump(mode="json")
    content["model"]["width"], content["batch"] = 4, 8
    for stage in content["stages"]:
        stage["epochs"] = 1
        if stage["trades"]:
            stage["trades"]["steps"] = 2
        if stage["awp"]:
            stage["awp"]["start_epoch"] = 0
        if stage["terms"]["sns"]:
            stage["terms"]["sns"]["pairs"] = 16
    return Recipe.model_validate(content)


@pytest.mark.parametrize("path", FOR_A_GPU, ids=named)
def test_a_recipe_for_a_gpu_runs_in_small(path: Path, tmp_path: Path) -> None:
    recipe = shrunk(load_recipe(path))
    other = build_model(recipe.model, classes=CLASSES, mean=[0.5] * 3, std=[0.15] * 3, side=SIDE).eval()
    Trainer(recipe, toy_dataset(train=16), tmp_path / "run", teacher=other, init=other if recipe.init else None).run()
    history = json.loads((tmp_path / "run" / "checkpoint.json").read_text("utf-8"))["history"]
    assert [row["stage"] for row in history] == [stage.name for stage in recipe.stages]
    due = {name for name in ("jacobian", "selective", "sns") if getattr(recipe.stages[-1].terms, name)}
    assert due <= set(history[-1])
    assert all(math.isfinite(value) for row in history for value in row.values() if isinstance(value, float))


@pytest.mark.parametrize("path", GOING_ON, ids=named)
def test_a_recipe_that_goes_on_fits_the_file_that_it_names(path: Path) -> None:
    recipe = load_recipe(path)
    assert recipe.init is not None
    file = weights_at(recipe.init)
    kept = read_kept(file)
    assert goes_on(kept.recipe.model, recipe.model)
    assert kept.recipe.data == recipe.data
    network_in(file, kept, classes=CLASSES_OF[recipe.data.source.removesuffix("_full")], side=32)
