"""`palisade build`: from data to a bundle that the gateway serves, in one command.

Train the answering network and its companion (finished runs are taken as they are), fit benign constants, export,
calibrate through the served path, write samples, measure, and only then put the folder in place: a bundle is whole or
not there.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from gateway.core.loading import Bundle, load_bundle, read_manifest, write_manifest
from training.bundling.assemble import Plan, Report, Silent, assemble, check_free, input_spec
from training.bundling.calibrate import enough_to_calibrate
from training.bundling.kinds import add_kinds
from training.bundling.networks import ROLES, load_networks
from training.bundling.pool import add_pool
from training.bundling.provenance import load_data
from training.bundling.recipe import BundleRecipe, load_bundle_recipe, network_recipe
from training.bundling.small_field import add_small_field
from training.bundling.votes import add_votes
from training.commands.terminal import Runs, Threads, command, console, progress_bars, use_threads
from training.data.dataset import Dataset
from training.errors import RecipeError, TrainingError
from training.evaluate.card import evaluate, write_card
from training.evaluate.registration import Registration, differences, read_registration
from training.evaluate.units import known_figures
from training.loop.train import settled_all, train
from training.loop.weights import is_file_of_weights, load_kept, read_kept, weights_at
from training.util.atomic import draft_of


def build_bundle(
    config: Path,
    out: Path,
    *,
    runs: Path,
    networks: Path | None = None,
    card: bool = True,
    report: Report | None = None,
    force: bool = False,
    registration: Path | None = None,
) -> Bundle:
    """Build the bundle that `config` describes into `out` and return it as the gateway loads it.

    `networks` is a bundle's `networks.safetensors`: its networks are taken and nothing is trained. Without `card` the
    attacks are left to `palisade evaluate`. `registration` is a file that the card is held to. Raises `TrainingError`
    (its subclasses name the cause); `out` is replaced only by a finished bundle, and only if `force`.
    """
    report = report or Silent()
    recipe = load_bundle_recipe(config)
    try:
        known_figures(recipe.evaluation.bounds)
    except TrainingError as error:
        raise RecipeError(f"{config}: evaluation.{error}") from None
    check_free(out, force=force)
    files = {role: weights_at(name) for role in ROLES if is_file_of_weights(name := getattr(recipe, role))}
    kept = {role: read_kept(path) for role, path in files.items()}
    recipes = {role: network_recipe(config, getattr(recipe, role)) for role in ROLES}
    if recipes["standard"].data != recipes["companion"].data:
        raise RecipeError(f"{config}: answering network and companion must be trained on the same data and splits")
    data = load_data(recipes["standard"], report.step)
    enough_to_calibrate(data)
    held = None if registration is None else _held(registration, recipe, data)
    if networks is not None:
        models = {role: recipes[role].model for role in ROLES}
        spec = input_spec(data, recipes["standard"].data.resize)
        made = load_networks(networks, models, classes=len(data.classes), spec=spec)
    else:
        recipes |= settled_all({role: recipes[role] for role in ROLES if role not in kept}, runs)
        made = {
            role: load_kept(files[role], None, data)[1]
            if role in kept
            else train(recipes[role], data, runs=runs, report=report.training)
            for role in ROLES
        }
    plan = Plan(
        name=recipe.name,
        version=recipe.version,
        description=recipe.description,
        fused=recipe.fused,
        guard=recipe.guard,
        screened_by=recipe.screened_by,
        localiser=recipe.localiser,
        policy=recipe.policy,
        benign=recipe.benign,
        samples=recipe.samples,
        seed=recipe.evaluation.seed,
        resize=recipes["standard"].data.resize,
        training={role: recipes[role].model_dump(mode="json") for role in recipes}
        | {"evaluation": recipe.evaluation.model_dump(mode="json"), "benign": recipe.benign.model_dump(mode="json")}
        | ({"history": {role: each.history for role, each in kept.items()}} if kept else {}),
    )
    with draft_of(out) as draft:
        assemble(draft, plan, made, data, report)
        if recipe.kinds:
            add_kinds(draft, read_manifest(draft), data, seed=plan.seed, progress=report.step)
        if recipe.small_field is not None:  # which votes and the pool ask, where it is there
            add_small_field(draft, read_manifest(draft), data, weights_at(recipe.small_field))
        if recipe.votes:
            add_votes(draft, read_manifest(draft), data.calibrate, progress=report.step)
        if recipe.pool:
            add_pool(draft, read_manifest(draft), data.calibrate, progress=report.step)
        if card:
            write_card(draft, evaluate(load_bundle(draft), data, recipe.evaluation, report.step, registration=held))
            write_manifest(draft, read_manifest(draft))
    return load_bundle(out)


def _held(path: Path, recipe: BundleRecipe, data: Dataset) -> Registration:
    """The registration at `path`; `TrainingError` where the recipe or the data are not the registered ones."""
    found = read_registration(path)
    problems = differences(
        found,
        bundle=recipe.name,
        version=recipe.version,
        evaluation=recipe.evaluation,
        data=json.loads(json.dumps(data.describe())),
    )
    if problems:
        raise TrainingError("; ".join(problems))
    return found


@command
def build(
    config: Annotated[Path, typer.Argument(help="Bundle recipe, for example training/configs/gtsrb/bundle.yaml.")],
    out: Annotated[Path, typer.Option(help="Folder of the bundle, for example models/gtsrb.")],
    runs: Runs = Path("runs"),
    networks: Annotated[
        Path | None, typer.Option(help="Use the networks of this networks.safetensors file and train none.")
    ] = None,
    card: Annotated[
        bool, typer.Option(help="Attack the bundle and write its card; otherwise `evaluate` does it later.")
    ] = True,
    registration: Annotated[
        Path | None, typer.Option(help="Registration that the card is held to (`palisade card register`).")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing bundle.")] = False,
    threads: Threads = None,
) -> None:
    """Build a bundle that the gateway serves from data: train, export, calibrate, attack, write the card."""
    use_threads(threads)
    with progress_bars() as bars:
        bundle = build_bundle(
            config, out, runs=runs, networks=networks, card=card, report=bars, force=force, registration=registration
        )
    done = f"card in {out / 'card.md'}" if card else f"no card yet: palisade evaluate {out}"
    console.print(f"{out}: {bundle.name} {bundle.version}, {done}; serve it: palisade serve --models {out}")
