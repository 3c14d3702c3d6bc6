"""The `palisade` command: serve, predict, inspect bundles; training's commands where training is installed."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console
from rich.table import Table
from typer.core import TyperGroup

from gateway import __version__
from gateway.cli import images as images_cli
from gateway.cli.keys import app as keys_app
from gateway.cli.models import app as models_app
from gateway.cli.plugins import load, placeholder, plugins
from gateway.cli.terminal import fail, plain, reported
from gateway.core.loading import load_bundle, read_manifest
from gateway.core.manifest import MANIFEST
from gateway.settings import load_settings


class _Commands(TyperGroup):
    """The gateway's own commands and those that other packages add."""

    def list_commands(self, ctx: Any) -> list[str]:
        return [*super().list_commands(ctx), *plugins()]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        return placeholder(cmd_name) if cmd_name in plugins() else super().get_command(ctx, cmd_name)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        if args[0] in plugins():
            return args[0], _added(args[0]), args[1:]
        return super().resolve_command(ctx, args)


app = typer.Typer(cls=_Commands, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
bundle_app = typer.Typer(no_args_is_help=True, help="Show and verify bundles.")
app.add_typer(bundle_app, name="bundle")
app.command()(images_cli.predict)
app.command()(images_cli.scan)
app.add_typer(keys_app, name="keys")
app.add_typer(models_app, name="models")

Models = Annotated[
    list[Path] | None, typer.Option("--models", "-m", help="Folder of bundles, or one bundle; may be repeated.")
]


def _added(name: str) -> Any:
    try:
        return load(name)
    except ImportError as error:
        fail(f"{name} needs the training extra ({error}): pip install 'palisade-gateway[training]'")


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
    host: Annotated[str | None, typer.Option(help="Address to listen on (default 127.0.0.1).")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on (default 3000).")] = None,
    workers: Annotated[
        int | None, typer.Option(help="Number of worker processes (default 1); with CUDA each has one GPU.")
    ] = None,
    device: Annotated[
        Literal["auto", "cpu", "cuda"] | None, typer.Option(help="Device that runs the graph (default auto).")
    ] = None,
    precision: Annotated[
        Literal["auto", "fp32", "fp16"] | None, typer.Option(help="Precision of the graph (default auto).")
    ] = None,
    threads: Annotated[
        int | None, typer.Option(help="Threads of each worker (default: cores divided by workers).")
    ] = None,
    policy: Annotated[
        Literal["observe", "sanitize", "block"] | None,
        typer.Option(help="Action on flagged inputs (default: the bundle's)."),
    ] = None,
    alpha: Annotated[
        float | None,
        typer.Option(
            help="False-positive rate of flags, one that the bundle was calibrated for (default: the bundle's)."
        ),
    ] = None,
) -> None:
    """Serve bundles over HTTP; each option can also be set by the environment variable PALISADE_<OPTION>."""
    from gateway.access.auth import check_access
    from gateway.audit.trail import check_audit
    from gateway.process.home import bentoml_home
    from gateway.process.serving import free_port, run_server, sample_image
    from gateway.telemetry.tracing import tracing_options
    from gateway.versions.registry import load_registry, opened
    from gateway.versions.rollout import stored_wanted

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
    # Opening the bundles once here reports an error in one line with an exit code, before workers start and warm up.
    registry = load_registry(settings, stored_wanted(settings), load=opened)
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
    """Print the contents of a bundle's manifest."""
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

    The exit code is 1 if an answer differs from the one that the bundle states.
    """
    from gateway.core.engine import Engine
    from gateway.versions.replay import replay

    bundle = load_bundle(path)
    engine = Engine.open(bundle, device="cpu")
    seconds = engine.warm_up()
    count, differences = replay(bundle, engine)
    files = len(bundle.manifest.files)
    what = f"{bundle.name} {bundle.version}, {files} files intact"
    typer.echo(f"{path / MANIFEST}: {what}, graph runs ({seconds * 1e3:.1f} ms), {count} samples answered again")
    for difference in differences:
        sample, field = difference.sample, difference.field
        typer.echo(
            f"{path}: {sample}: {field} is {difference.found!r}, the bundle states {difference.stated!r}", err=True
        )
    if differences:
        raise typer.Exit(1)


if __name__ == "__main__":
    app()
