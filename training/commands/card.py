"""`palisade card`: register what a card will be held to, check a card, and hand it on in public formats."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from gateway.atomic import write_text
from gateway.core.loading import load_bundle
from gateway.core.manifest import MANIFEST
from training.bundling.provenance import load_data, made_with
from training.bundling.recipe import load_bundle_recipe, network_recipe
from training.commands.terminal import BundlePath, command, console
from training.data.dataset import Dataset
from training.errors import TrainingError
from training.evaluate.exports import FORMATS, Format, export_card
from training.evaluate.registration import read_registration
from training.evaluate.registration import register as registered
from training.evaluate.units import known_figures
from training.evaluate.verify import stated_problems
from training.recipes.evaluation import Evaluation

app = typer.Typer(no_args_is_help=True, help="Register, check and export robustness cards.")


@app.command()
@command
def register(
    recipe: Annotated[
        Path, typer.Argument(help="Bundle recipe, or the folder of a bundle that is to be evaluated by its own recipe.")
    ],
    out: Annotated[
        Path | None, typer.Option(help="File to write; default: runs/registration-NAME-VERSION.json.")
    ] = None,
) -> None:
    """Write down bounds, data, seed, numbers of images and code version, and hash them, before anything is measured.

    Publish the SHA-256 that is printed. `build` and `evaluate` take the file by --registration.
    """
    name, version, evaluation, data = _asked(recipe)
    known_figures(evaluation.bounds)
    path = out or Path("runs") / f"registration-{name}-{version}.json"
    if path.exists():
        raise TrainingError(f"registration: {path} exists; a registration is not replaced, name another --out")
    made = registered(name, version, evaluation, data.describe())
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(made.to_json(), indent=1) + "\n")
    console.print(f"{path}: {name} {version}, {len(evaluation.bounds)} bounds, registered as", markup=False)
    typer.echo(made.sha256)


@app.command()
@command
def check(
    bundle: BundlePath,
    registration: Annotated[
        Path | None, typer.Option(help="Registration that the card must carry; default: the one that it carries.")
    ] = None,
) -> None:
    """Compare a card with its outcomes, its page and its registration; nothing is measured, no data are needed.

    Exit code 1 if something does not agree. `palisade verify` measures some of it again as well.
    """
    loaded = load_bundle(bundle)
    card = loaded.card()
    if card is None:
        raise TrainingError(f"{bundle}: no card to check; `palisade evaluate {bundle}` makes one")
    wanted = None if registration is None else read_registration(registration)
    bounds = Evaluation.model_validate(card["settings"]).bounds
    problems = stated_problems(loaded, card, bounds, wanted)
    for row in problems:
        why = row["why"] if row["why"].startswith(row["title"]) else f"{row['title']}: {row['why']}"
        typer.echo(f"{bundle}: {why}", err=True)
    if problems:
        raise typer.Exit(1)
    held = card.get("registration")
    state = f"registered as {held['sha256']}" if held else "without a registration"
    console.print(f"{bundle}: the card agrees with itself, {state}", markup=False, soft_wrap=True)


@app.command()
@command
def export(
    bundle: BundlePath,
    format_: Annotated[Format, typer.Option("--format", help=f"{', '.join(FORMATS)}.")],
    out: Annotated[Path | None, typer.Option(help="File to write; default: standard output.")] = None,
) -> None:
    """Write a card in a public format: CycloneDX 1.6, in-toto test result, RobustBench's model_info, SARIF 2.1.0."""
    text = json.dumps(export_card(load_bundle(bundle), format_), indent=1) + "\n"
    if out is None:
        typer.echo(text, nl=False)
        return
    write_text(out, text)
    console.print(f"{out}: {format_}", markup=False, soft_wrap=True)


def _asked(path: Path) -> tuple[str, str, Evaluation, Dataset]:
    """Name, version, evaluation and data of a bundle recipe, or of a bundle."""
    if (path / MANIFEST).is_file():
        bundle = load_bundle(path)
        data, evaluation = made_with(bundle)
        return bundle.name, bundle.version, evaluation, data
    recipe = load_bundle_recipe(path)
    data = load_data(network_recipe(path, recipe.standard))
    return recipe.name, recipe.version, recipe.evaluation, data
