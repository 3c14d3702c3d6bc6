"""The `palisade` command: serve, predict, look into bundles; training's commands where training is installed."""

from __future__ import annotations

import importlib
import logging
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console
from rich.table import Table
from typer.core import TyperGroup

from gateway import __version__, images_cli
from gateway.bundle import MANIFEST, load_bundle, read_manifest
from gateway.keys_cli import app as keys_app
from gateway.models_cli import app as models_app
from gateway.settings import load_settings
from gateway.terminal import fail, plain, reported

TRAINING_COMMANDS = {
    "train": "Train a network by a recipe.",
    "analyse": "Look into networks under attack: layers, neurons, explanations, detectors.",
    "build": "From data to a bundle, in one command.",
    "wrap": "Defend a trained network as it is: calibrate and export.",
    "harden": "Train a network and a companion on an image folder.",
    "data": "Convert data sets.",
    "calibrate": "Calibrate a bundle on the machine that will serve it.",
    "evaluate": "Attack the system as served and write its card.",
    "verify": "Compute the headline figures again, against their bounds.",
}


class _Commands(TyperGroup):
    """Our commands, and training's, which are imported only when one of them is run."""

    def list_commands(self, ctx: Any) -> list[str]:
        return [*super().list_commands(ctx), *TRAINING_COMMANDS]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name in TRAINING_COMMANDS:
            return typer.main.get_command(_placeholder(cmd_name))
        return super().get_command(ctx, cmd_name)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        if args[0] in TRAINING_COMMANDS:
            return args[0], _training_command(args[0]), args[1:]
        return super().resolve_command(ctx, args)


app = typer.Typer(cls=_Commands, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
bundle_app = typer.Typer(no_args_is_help=True, help="Look into bundles.")
app.add_typer(bundle_app, name="bundle")
app.command()(images_cli.predict)
app.command()(images_cli.scan)
app.add_typer(keys_app, name="keys")
app.add_typer(models_app, name="models")

Models = Annotated[
    list[Path] | None, typer.Option("--models", "-m", help="Folder of bundles, or one bundle; may be repeated.")
]


def _placeholder(name: str) -> typer.Typer:
    stub = typer.Typer(add_completion=False)
    stub.command(name, help=TRAINING_COMMANDS[name])(lambda: None)
    return stub


def _training_command(name: str) -> Any:
    try:
        training = importlib.import_module("training.cli")
    except ImportError as error:
        fail(f"{name} needs the training extra ({error}): pip install 'palisade-gateway[training]'")
    command = getattr(typer.main.get_command(training.app), "commands", {}).get(name)
    if command is None:
        fail(f"{name} does not exist in this version")
    return command


def _version(value: bool) -> None:
    if value:
        typer.echo(f"palisade {__version__}")
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Palisade: image classifiers behind a gateway that explains, flags and neutralises attacks."""


@app.command()
@reported
def serve(
    models: Models = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on (127.0.0.1).")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on (3000).")] = None,
    workers: Annotated[int | None, typer.Option(help="Worker processes (1); with CUDA, one GPU each.")] = None,
    device: Annotated[Literal["auto", "cpu", "cuda"] | None, typer.Option(help="Where the graph runs (auto).")] = None,
    precision: Annotated[
        Literal["auto", "fp32", "fp16"] | None, typer.Option(help="What the graph computes in (auto).")
    ] = None,
    threads: Annotated[int | None, typer.Option(help="Threads of a worker (cores divided by workers).")] = None,
    policy: Annotated[Literal["observe", "sanitize", "block"] | None, typer.Option(help="Action on flags.")] = None,
    alpha: Annotated[float | None, typer.Option(help="False-positive rate of flags; a calibrated one.")] = None,
) -> None:
    """Serve bundles over HTTP; every option is also a variable PALISADE_<OPTION>."""
    from gateway.audit.trail import check_audit
    from gateway.auth import check_access
    from gateway.home import bentoml_home
    from gateway.registry import load_registry
    from gateway.rollout import stored_wanted
    from gateway.serving import free_port, run_server, sample_image
    from gateway.tracing import tracing_options

    given = {
        "host": host,
        "port": port,
        "workers": workers,
        "device": device,
        "precision": precision,
        "threads": threads,
        "policy": policy,
        "alpha": alpha,
        "models": models,
    }
    settings = load_settings(**{name: value for name, value in given.items() if value is not None})
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    check_access(settings)
    check_audit(settings)
    tracing_options(settings)
    # Loading once here turns whatever is wrong into one line and an exit code, before workers are started.
    registry = load_registry(settings, stored_wanted(settings))
    free_port(settings)
    home = bentoml_home(settings)
    where = f"http://{settings.host}:{settings.port}"
    served = ", ".join(f"{pipeline.bundle.name} {pipeline.bundle.version}" for pipeline in registry)
    typer.echo(f"palisade {__version__} serves {served} on {where}")
    sample = sample_image(registry.get().bundle.path)
    typer.echo(f"  try      curl -s --data-binary @{sample} -H 'Content-Type: image/png' '{where}/v1/predict'")
    typer.echo(f"  see      {where}/ in a browser; {where}/docs.json, {where}/metrics")
    run_server(settings, home)


@bundle_app.command()
@reported
def show(path: Annotated[Path, typer.Argument(help="Folder of a bundle.")]) -> None:
    """Print what a bundle says of itself."""
    manifest = read_manifest(path)
    table = Table(show_header=False, box=None)
    size, layers = manifest.input, ", ".join(layer.name for layer in manifest.layers)
    rows = {
        "name": f"{manifest.name} {manifest.version}",
        "description": manifest.description,
        "created": manifest.created.isoformat(),
        "classes": f"{len(manifest.classes)}: {', '.join(manifest.classes[:4])}, ...",
        "input": f"{size.height} x {size.width}, {size.channels} channel(s), resize {size.resize.rule}",
        "scores": ", ".join(manifest.scores),
        "layers": layers,
        "companion": "yes" if manifest.companion else "no",
        "calibrated": "; ".join(
            f"{c.key}, n {c.n}, alpha {', '.join(f'{cutoff.alpha:g}' for cutoff in c.cutoffs)}"
            for c in manifest.calibrations
        ),
        "policy": f"{manifest.policy.action} at alpha {manifest.policy.alpha:g}",
    }
    for name, value in rows.items():
        table.add_row(name, plain(value))
    Console().print(table)


@bundle_app.command("verify")
@reported
def verify_bundle(path: Annotated[Path, typer.Argument(help="Folder of a bundle.")]) -> None:
    """Check hashes, schema, calibration and graph signature, run the graph, and answer the samples again.

    Exit code 1 if an answer differs from the bundle's.
    """
    from gateway.engine import Engine
    from gateway.samples import replay

    bundle = load_bundle(path)
    engine = Engine.open(bundle, device="cpu")
    seconds = engine.warm_up()
    count, differences = replay(bundle, engine)
    files = len(bundle.manifest.files)
    what = f"{bundle.name} {bundle.version}, {files} files sound"
    typer.echo(f"{path / MANIFEST}: {what}, graph runs ({seconds * 1e3:.1f} ms), {count} samples answered again")
    for difference in differences:
        sample, field = difference.sample, difference.field
        typer.echo(f"{path}: {sample}: {field} is {difference.found!r}, the bundle tells {difference.told!r}", err=True)
    if differences:
        raise typer.Exit(1)


if __name__ == "__main__":
    app()
