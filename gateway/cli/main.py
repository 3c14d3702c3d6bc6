"""The `palisade` command: serve, predict, inspect bundles; training's commands where training is installed."""

from __future__ import annotations

from typing import Annotated

import typer

from gateway import __version__
from gateway.cli import images as images_cli
from gateway.cli import serving
from gateway.cli.bundles import app as bundle_app
from gateway.cli.certificate import app as certificate_app
from gateway.cli.keys import app as keys_app
from gateway.cli.models import app as models_app
from gateway.cli.plugins import Commands
from gateway.cli.pull import pull
from gateway.cli.scanning import scan
from gateway.cli.settings import settings

app = typer.Typer(cls=Commands, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
app.add_typer(bundle_app, name="bundle")
app.command()(serving.serve)
app.add_typer(serving.guard_app, name="guard")
app.command()(images_cli.predict)
app.command()(scan)
app.command()(pull)
app.command()(settings)
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


if __name__ == "__main__":
    app()
