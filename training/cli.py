"""Training's commands of `palisade`: train, analyse, build, calibrate, evaluate, verify."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, Literal, ParamSpec, TypeVar

import torch
import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from gateway.bundle import load_bundle, write_manifest
from gateway.errors import PalisadeError
from training.analysis.sensitivity import sensitivity_report
from training.build import build as build_bundle
from training.build import load_data, recipe_of, same_data
from training.build import train as train_network
from training.drafts import draft_of
from training.errors import TrainingError
from training.evaluate.card import evaluate as evaluate_bundle
from training.evaluate.card import write_card
from training.evaluate.verify import verify as verify_bundle
from training.networks import load_defence
from training.pixels import to_tensor
from training.recalibrate import card_measured, recalibrate
from training.recipe import load_recipe
from training.trainer import accuracy

P = ParamSpec("P")
R = TypeVar("R")
app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=__doc__)
console, errors = Console(), Console(stderr=True)

Runs = Annotated[Path, typer.Option(help="Folder of training runs; each run is named after its recipe.")]
Threads = Annotated[int | None, typer.Option(min=1, help="CPU threads; default: as many as torch chooses.")]
BundlePath = Annotated[Path, typer.Argument(help="Folder of a bundle.")]


def _command(function: Callable[P, R]) -> Callable[P, R]:
    """Errors that the user can act on become one line and exit code 2; an interrupt says how to go on."""

    @wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return function(*args, **kwargs)
        except (TrainingError, PalisadeError) as error:
            errors.print(f"error: {error}", style="red", markup=False, highlight=False, soft_wrap=True)
            raise typer.Exit(2) from None
        except OSError as error:
            errors.print(
                f"error: {error.strerror or error}: {error.filename}", style="red", markup=False, soft_wrap=True
            )
            raise typer.Exit(2) from None
        except KeyboardInterrupt:
            errors.print("stopped; run the same command again to go on from the last checkpoint")
            raise typer.Exit(130) from None

    return run


class _Bars:
    """Progress bars of a command: one for each training run and one for each other step."""

    def __init__(self, progress: Progress) -> None:
        self._progress, self._tasks = progress, dict[str, TaskID]()

    def training(self, run: str, event: dict[str, Any]) -> None:
        if "batch" in event:
            text = f"{run}: {event['stage']}, loss {event['loss']:.3f}"
            self._set(run, text, event["batch"], event["batches"])
        else:
            terms = ", ".join(f"{k} {v:.4f}" for k, v in event.items() if isinstance(v, float))
            self._progress.console.print(f"{run}: epoch {event['epoch']}/{event['epochs']} ({event['stage']}): {terms}")

    def step(self, name: str, done: int, total: int) -> None:
        self._set(name, name, done, total)

    def _set(self, key: str, text: str, done: int, total: int) -> None:
        if key not in self._tasks:
            for task in self._progress.tasks:  # steps follow one another: what came before is done
                self._progress.update(task.id, completed=task.total)
            self._tasks[key] = self._progress.add_task(text)
            if not self._progress.console.is_terminal:  # bars are not drawn into a log file; say what goes on
                self._progress.console.print(text)
        self._progress.update(self._tasks[key], description=text, completed=done, total=total)


@contextmanager
def _bars() -> Iterator[_Bars]:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=errors) as progress:
        yield _Bars(progress)


def _threads(threads: int | None) -> None:
    if threads:
        torch.set_num_threads(threads)


@app.command()
@_command
def train(
    config: Annotated[Path, typer.Argument(help="Recipe (YAML), for example training/configs/gtsrb/standard.yaml.")],
    runs: Runs = Path("runs"),
    threads: Threads = None,
) -> None:
    """Train a network by a recipe; a run that was stopped goes on from its last epoch."""
    _threads(threads)
    recipe = load_recipe(config)
    data = load_data(recipe)
    with _bars() as bars:
        network = train_network(recipe, data, runs=runs, report=bars.training)
    console.print(
        f"{runs / recipe.name}: select accuracy {accuracy(network, data.select):.4f} (n = {len(data.select)})"
    )


@app.command()
@_command
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
    _threads(threads)
    with _bars() as bars:
        bundle = build_bundle(config, out, runs=runs, networks=networks, card=card, report=bars, force=force)
    done = f"card in {out / 'card.md'}" if card else f"no card yet: palisade evaluate {out}"
    console.print(f"{out}: {bundle.name} {bundle.version}, {done}; serve it: palisade serve --models {out}")


@app.command("calibrate")
@_command
def calibrate_bundle(
    bundle: BundlePath,
    out: Annotated[Path, typer.Option(help="Folder of the new bundle.")],
    version: Annotated[str, typer.Option(help="Version of the new bundle, for example 1.2.0-gpu.")],
    device: Annotated[Literal["cpu", "cuda"], typer.Option(help="What will serve it.")] = "cuda",
    precision: Annotated[
        Literal["fp32", "fp16"], typer.Option(help="fp16 graphs are made where the bundle has none.")
    ] = "fp32",
) -> None:
    """Calibrate a bundle on the machine that will serve it, beside or in place of what it has, into a new bundle.

    The benign images are those that the bundle was made with. The card stays as it is, and tells of the CPU and fp32.
    """
    with _bars() as bars:
        made = recalibrate(bundle, out, version=version, provider=device, precision=precision, progress=bars.step)
    have = ", ".join(calibration.key for calibration in made.manifest.calibrations)
    console.print(f"{out}: {made.name} {made.version}, calibrated for {have}; serve it: palisade serve --models {out}")


@app.command()
@_command
def evaluate(bundle: BundlePath = Path("models/gtsrb"), threads: Threads = None) -> None:
    """Attack a bundle as it is served and write its card anew."""
    _threads(threads)
    loaded = load_bundle(bundle)
    recipe, settings = recipe_of(loaded)
    data = load_data(recipe)
    same_data(loaded, data)
    with _bars() as bars:
        card = evaluate_bundle(loaded, data, settings, bars.step)
    with draft_of(bundle, copy=True) as draft:
        write_card(draft, card)
        write_manifest(draft, card_measured(loaded.manifest, loaded.calibration("cpu")))
    console.print((bundle / "card.md").read_text("utf-8"), markup=False, highlight=False)


@app.command()
@_command
def verify(
    bundle: BundlePath = Path("models/gtsrb"),
    robust: Annotated[
        int | None, typer.Option(min=1, help="Test images for the PGD figures; default: the card's.")
    ] = None,
    threads: Threads = None,
) -> None:
    """Compute the headline figures again; exit code 1 if one misses its bound or differs from the card."""
    _threads(threads)
    with _bars() as bars:
        rows = verify_bundle(load_bundle(bundle), bars.step, robust=robust)
    table = Table("figure", "value", "bound", "card", "n", "seed", "")
    for row in rows:
        sign = ">=" if row["kind"] == "at_least" else "<="
        table.add_row(
            row["title"], f"{row['value']:.4f}", f"{sign} {row['bound']:g}", f"{row['card']:.4f}", f"{row['n']}",
            f"{row['seed']}", "pass" if row["pass"] else "FAIL" if row["agrees"] else "FAIL (card differs)",
        )  # fmt: skip
    console.print(table)
    if not all(row["pass"] for row in rows):
        raise typer.Exit(1)


@app.command()
@_command
def analyse(
    bundle: BundlePath = Path("models/gtsrb"),
    images: Annotated[int, typer.Option(min=8, help="Select images to attack.")] = 256,
    eps: Annotated[float, typer.Option(min=0, max=255, help="Linf radius, of 255.")] = 8.0,
    seed: int = 0,
    out: Annotated[Path | None, typer.Option(help="Write the rows as JSON, too.")] = None,
) -> None:
    """Neuron sensitivity by layer of a bundle's networks, under PGD and under Gaussian noise of equal norm."""
    loaded = load_bundle(bundle)
    recipe, _ = recipe_of(loaded)
    data = load_data(recipe)
    x, y = to_tensor(data.select.x[:images]), torch.from_numpy(data.select.y[:images])
    defence, report = load_defence(loaded), {}
    table = Table("network", "layer", "neurons", "absolute", "relative", "relative, Gaussian", "ratio")
    for role, network in (("answering", defence.network), ("companion", defence.companion)):
        report[role] = sensitivity_report(network, x, y, eps=eps / 255, seed=seed)
        for row in report[role]:
            table.add_row(
                role, row["layer"], str(row["neurons"]), f"{row['absolute']:.4f}", f"{row['relative']:.3f}",
                f"{row['relative_gaussian']:.3f}", f"{row['relative_ratio']:.2f}",
            )  # fmt: skip
    console.print(table)
    console.print(f"n = {len(x)} images of the select split, PGD-20 at {eps:g}/255, seed {seed}")
    if out:
        out.write_text(json.dumps({"n": len(x), "eps": eps, "seed": seed, **report}, indent=1) + "\n", "utf-8")
