"""`palisade weights`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from gateway.core.loading import load_bundle
from training.bundling.networks import NETWORKS, load_networks
from training.bundling.provenance import load_data, made_with
from training.commands.terminal import Subject, command, console
from training.errors import TrainingError
from training.loop.runs import recipe_at
from training.loop.weights import Kept, averaged, groups_of, keep_run, write_kept
from training.models import ModelSpec
from training.recipes.training import Recipe

Role = Literal["standard", "companion"]


@command
def weights(
    subject: Subject,
    out: Annotated[Path, typer.Argument(help="The file, for example training/weights/gtsrb-companion.safetensors.")],
    role: Annotated[Role, typer.Option(help="Which network of a bundle; a run has one.")] = "companion",
    mean_with: Annotated[
        list[Path] | None, typer.Option(help="Files of weights; the mean with their networks is kept. May be repeated.")
    ] = None,
) -> None:
    """Keep the network of a run or of a bundle as a file from which a recipe can start (`init: FILE`).

    Of a run that is not finished it is the averaged network of the last finished epoch.
    """
    if (subject / NETWORKS).is_file():
        kept = _of_bundle(subject, role, out)
    else:
        kept = keep_run(subject, out, load_data(recipe_at(subject)))
    if mean_with:
        kept = averaged(out, mean_with)
    epochs, hours = kept.totals
    console.print(f"{out}: {kept.recipe.name}, {epochs} epochs in all, {hours:.2f} core hours recorded", soft_wrap=True)


def _of_bundle(folder: Path, role: Role, out: Path) -> Kept:
    bundle = load_bundle(folder)
    manifest, (data, _) = bundle.manifest, made_with(bundle)
    try:
        recipe = Recipe.model_validate(manifest.training[role])
    except (KeyError, ValueError):
        raise TrainingError(f"{folder}: its {role} network was not trained by a recipe") from None
    models: dict[str, ModelSpec] = {role: recipe.model}
    network = load_networks(folder / NETWORKS, models, classes=len(manifest.classes), spec=manifest.input)[role]
    kept = Kept(recipe=recipe, data=data.describe(), groups=groups_of(data), epochs=recipe.epochs, core_hours=None)
    write_kept(out, dict(network.state_dict()), kept)
    return kept
