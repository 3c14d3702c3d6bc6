"""The `palisade` command: serve, predict, inspect bundles; training's commands where training is installed."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from gateway import __version__
from gateway.cli import images as images_cli
from gateway.cli import serving
from gateway.cli.certificate import app as certificate_app
from gateway.cli.keys import app as keys_app
from gateway.cli.models import app as models_app
from gateway.cli.plugins import Commands
from gateway.cli.terminal import plain, reported
from gateway.core.loading import load_bundle, read_manifest
from gateway.core.manifest import MANIFEST

app = typer.Typer(cls=Commands, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
bundle_app = typer.Typer(no_args_is_help=True, help="Show and verify bundles.")
app.add_typer(bundle_app, name="bundle")
app.command()(serving.serve)
app.add_typer(serving.guard_app, name="guard")
app.command()(images_cli.predict)
app.command()(images_cli.scan)
app.add_typer(certificate_app, name="certificate")
app.add_typer(keys_app, name="keys")
app.add_typer(models_app, name="models")


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
        **({} if manifest.upstream is None else {"upstream": manifest.upstream.protocol.url}),
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
    from gateway.upstream.opening import open_engine
    from gateway.versions.replay import replay

    bundle = load_bundle(path)
    engine = open_engine(bundle, device="cpu")
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
