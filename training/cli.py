"""Training's commands of `palisade`: train, analyse, build, calibrate, evaluate, verify."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from training.analysis.cli import app as analyse
from training.build import build as build_bundle
from training.build import load_data
from training.build import train as train_network
from training.evaluate.cli import evaluate, verify
from training.own_cli import data_app, harden, wrap
from training.processes import Device, chosen_device, open_fabric
from training.recalibrate import recalibrate
from training.recipe import load_recipe
from training.runs import settled
from training.terminal import BundlePath, Runs, Threads, command, console, progress_bars, use_threads
from training.trainer import accuracy

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=__doc__)
app.add_typer(analyse, name="analyse")
app.add_typer(data_app, name="data")
app.command()(wrap)
app.command()(harden)


@app.command()
@command
def train(
    config: Annotated[Path, typer.Argument(help="Recipe (YAML), for example training/configs/gtsrb/standard.yaml.")],
    runs: Runs = Path("runs"),
    device: Annotated[
        Device, typer.Option(help="auto: the GPU, where there is one; one for each process of torchrun.")
    ] = "auto",
    tensorboard: Annotated[
        bool, typer.Option("--tensorboard", help="Log for TensorBoard, too, into the run's folder.")
    ] = False,
    threads: Threads = None,
) -> None:
    """Train a network by a recipe; a run that was stopped goes on from its last epoch.

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


@app.command()
@command
def build(
    config: Annotated[Path, typer.Argument(help="Bundle recipe, for example training/configs/gtsrb/bundle.yaml.")],
    out: Annotated[Path, typer.Option(help="Folder of the bundle, for example models/gtsrb.")],
    runs: Runs = Path("runs"),
    networks: Annotated[
        Path | None, typer.Option(help="Take the networks of this networks.safetensors and train none.")
    ] = None,
    card: Annotated[bool, typer.Option(help="Attack the bundle and write its card; else `evaluate` does.")] = True,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing bundle.")] = False,
    threads: Threads = None,
) -> None:
    """From data to a bundle that the gateway serves: train, export, calibrate, attack, write the card."""
    use_threads(threads)
    with progress_bars() as bars:
        bundle = build_bundle(config, out, runs=runs, networks=networks, card=card, report=bars, force=force)
    done = f"card in {out / 'card.md'}" if card else f"no card yet: palisade evaluate {out}"
    console.print(f"{out}: {bundle.name} {bundle.version}, {done}; serve it: palisade serve --models {out}")


@app.command("calibrate")
@command
def calibrate_bundle(
    bundle: BundlePath,
    out: Annotated[Path, typer.Option(help="Folder of the new bundle.")],
    version: Annotated[
        str,
        typer.Option(help="Version of the new bundle, such as 1.4.1: higher than the old, or that is served."),
    ],
    device: Annotated[Literal["cpu", "cuda"], typer.Option(help="What will serve it.")] = "cuda",
    precision: Annotated[
        Literal["fp32", "fp16"], typer.Option(help="fp16 graphs are made where the bundle has none.")
    ] = "fp32",
) -> None:
    """Calibrate a bundle on the machine that will serve it, beside or in place of what it has, into a new bundle.

    The benign images are those that the bundle was made with. The card stays as it is, and tells of the CPU and fp32.
    """
    with progress_bars() as bars:
        made = recalibrate(bundle, out, version=version, provider=device, precision=precision, progress=bars.step)
    have = ", ".join(calibration.key for calibration in made.manifest.calibrations)
    console.print(f"{out}: {made.name} {made.version}, calibrated for {have}; serve it: palisade serve --models {out}")


app.command()(evaluate)
app.command()(verify)
