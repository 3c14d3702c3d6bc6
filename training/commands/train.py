"""`palisade train`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from training.bundling.provenance import load_data
from training.commands.terminal import Runs, Threads, command, console, progress_bars, use_threads
from training.loop.runs import settled
from training.loop.selection import accuracy
from training.loop.train import train as train_network
from training.recipes.training import load_recipe
from training.util.processes import Device, chosen_device, open_fabric


@command
def train(
    config: Annotated[Path, typer.Argument(help="Recipe (YAML), for example training/configs/gtsrb/standard.yaml.")],
    runs: Runs = Path("runs"),
    device: Annotated[
        Device, typer.Option(help="Device to train on; auto: a GPU if there is one, one for each process of torchrun.")
    ] = "auto",
    tensorboard: Annotated[
        bool, typer.Option("--tensorboard", help="Also log for TensorBoard, into the run's folder.")
    ] = False,
    threads: Threads = None,
) -> None:
    """Train a network by a recipe; a stopped run resumes from its last finished epoch.

    In several processes: torchrun --nproc-per-node N --no-python palisade train RECIPE
    """
    use_threads(threads)
    recipe = load_recipe(config)
    recipe = settled(recipe, runs / recipe.name, device=chosen_device(device))
    assert recipe.precision != "auto"
    fabric = open_fabric(device, recipe.precision)
    with fabric.rank_zero_first():  # the first may have to download
        data = load_data(recipe)
    with progress_bars(shown=fabric.is_global_zero) as bars:
        network = train_network(recipe, data, runs=runs, report=bars.training, fabric=fabric, tensorboard=tensorboard)
    if fabric.is_global_zero:
        console.print(
            f"{runs / recipe.name}: select accuracy {accuracy(network, data.select):.4f} (n = {len(data.select)})"
        )
