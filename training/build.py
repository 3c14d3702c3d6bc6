"""`palisade build`: from data to a bundle that the gateway serves, in one command.

Train the answering network and its companion (finished runs are taken as they are), fit benign constants, export,
calibrate through the served path, write samples, measure, and only then put the folder in place: a bundle is whole or
not there.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lightning_fabric import Fabric
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from gateway.bundle import MANIFEST, Bundle, Guard, Name, Policy, Version, load_bundle, read_manifest, write_manifest
from training.assemble import Plan, Report, Silent, assemble, input_spec
from training.calibrate import ALPHAS, GUARD, Benign, enough_to_calibrate
from training.data import Dataset, load_dataset
from training.defence.graph import SCORES, SCREEN_SCORES, STRICT
from training.drafts import draft_of
from training.errors import RecipeError, TrainingError
from training.evaluate.card import Evaluation, evaluate, write_card
from training.folders import Progress
from training.models import ModelSpec
from training.models.network import Network
from training.networks import ROLES, load_networks
from training.processes import chosen_device
from training.recipe import DataSpec, Recipe, load_recipe, read_yaml, validate
from training.runs import load_run, settled
from training.trainer import Trainer


class Wrapped(BaseModel):
    """What a manifest tells of a network that was not trained here: its architecture, weights and data."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    wrapped: str = Field(description="SHA-256 of the weights as they came")
    data: DataSpec
    model: ModelSpec


class BundleRecipe(BaseModel):
    """What a bundle is made of; `standard` and `companion` are recipe files beside this one.

    The score `companion_strict` is computed if it is fused or guards.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Name
    version: Version
    description: str = ""
    standard: str
    companion: str
    fused: list[str] = Field(default=list(SCORES), min_length=1, description="scores that Fisher's statistic combines")
    guard: Guard | None = Field(GUARD, description="the score whose objection no other outweighs; null: none")
    screened_by: list[str] = Field(["companion_margin"], description="scores by which the cascade screens; []: none")
    policy: Policy = Policy()
    benign: Benign = Field(Benign(), description="images that it is calibrated on")
    samples: int = Field(4, ge=1, le=50, description="of each kind: clean, attacked, patched")
    evaluation: Evaluation = Evaluation()


def load_bundle_recipe(path: Path) -> BundleRecipe:
    """Read and validate; `RecipeError` names the key that is wrong."""
    recipe = validate(BundleRecipe, read_yaml(path), path)
    every = (*SCORES, STRICT)
    named = {"fused": (recipe.fused, every), "screened_by": (recipe.screened_by, SCREEN_SCORES)}
    if recipe.guard:
        named["guard"] = ([recipe.guard.score], every)
    for key, (names, known) in named.items():
        if unknown := set(names) - set(known):
            raise RecipeError(f"{path}: {key}: unknown scores {sorted(unknown)}; there are {', '.join(known)}")
    for name in ("alpha", "gate_alpha"):
        if getattr(recipe.policy, name) not in ALPHAS:
            calibrated = ", ".join(f"{alpha:g}" for alpha in ALPHAS)
            raise RecipeError(f"{path}: policy.{name}: no cutoff is calibrated for it; there are {calibrated}")
    return recipe


def build(
    config: Path,
    out: Path,
    *,
    runs: Path,
    networks: Path | None = None,
    card: bool = True,
    report: Report | None = None,
    force: bool = False,
) -> Bundle:
    """Build the bundle that `config` describes into `out` and return it as the gateway loads it.

    `networks` is a bundle's `networks.safetensors`: its networks are taken and nothing is trained. Without `card` the
    attacks are left to `palisade evaluate`. Raises `TrainingError` (its subclasses name the cause); `out` is replaced
    only by a finished bundle, and only if `force`.
    """
    report = report or Silent()
    recipe = load_bundle_recipe(config)
    check_free(out, force=force)
    recipes = {role: load_recipe(config.parent / getattr(recipe, role)) for role in ROLES}
    if recipes["standard"].data != recipes["companion"].data:
        raise RecipeError(f"{config}: answering network and companion must be trained on the same data and splits")
    data = load_data(recipes["standard"], report.step)
    enough_to_calibrate(data)
    if networks is not None:
        models = {role: recipes[role].model for role in ROLES}
        spec = input_spec(data, recipes["standard"].data.resize)
        made = load_networks(networks, models, classes=len(data.classes), spec=spec)
    else:
        recipes = settled_all(recipes, runs)
        made = {role: train(recipes[role], data, runs=runs, report=report.training) for role in ROLES}
    plan = Plan(
        name=recipe.name,
        version=recipe.version,
        description=recipe.description,
        fused=recipe.fused,
        guard=recipe.guard,
        screened_by=recipe.screened_by,
        policy=recipe.policy,
        benign=recipe.benign,
        samples=recipe.samples,
        seed=recipe.evaluation.seed,
        resize=recipes["standard"].data.resize,
        training={role: recipes[role].model_dump(mode="json") for role in recipes}
        | {"evaluation": recipe.evaluation.model_dump(mode="json"), "benign": recipe.benign.model_dump(mode="json")},
    )
    with draft_of(out) as draft:
        assemble(draft, plan, made, data, report)
        if card:
            write_card(draft, evaluate(load_bundle(draft), data, recipe.evaluation, report.step))
            write_manifest(draft, read_manifest(draft))
    return load_bundle(out)


def check_free(out: Path, *, force: bool) -> None:
    """`TrainingError` if a bundle may not be put at `out`."""
    if out.exists() and not force:
        raise TrainingError(f"{out} exists; choose another --out or pass --force")
    if out.exists() and not (out / MANIFEST).is_file():
        raise TrainingError(f"{out} is not a bundle and would be lost; --force replaces bundles alone")


def load_data(recipe: Recipe | Wrapped, progress: Progress = lambda _name, _done, _total: None) -> Dataset:
    """The data set that a recipe names, split as it says."""
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
        progress=progress,
    )


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


def recipe_of(bundle: Bundle) -> tuple[Recipe | Wrapped, Evaluation]:
    """The data recipe and evaluation settings that a bundle was made with, from its manifest."""
    training = bundle.manifest.training
    try:
        kind = Wrapped if "wrapped" in training["standard"] else Recipe
        return kind.model_validate(training["standard"]), Evaluation.model_validate(training["evaluation"])
    except (KeyError, ValidationError) as error:
        reason = str(error).splitlines()[0]
        raise TrainingError(f"{bundle.path}: the manifest does not say how it was made: {reason}") from None


def made_with(bundle: Bundle) -> tuple[Dataset, Evaluation]:
    """The data and evaluation settings that a bundle was made with.

    `TrainingError` unless the data here are the very arrays that the manifest describes.
    """
    recipe, evaluation = recipe_of(bundle)
    data = load_data(recipe)
    told, found = json.loads(json.dumps(bundle.manifest.data)), data.describe()
    for split in ("train", "select", "calibrate", "test"):
        if told.get(split) != found[split]:
            raise TrainingError(
                f"{data.name}: the {split} split is not the one that {bundle.name} {bundle.version} was made with"
            )
    return data, evaluation
