"""`palisade pull`: a bundle from an object store or a registry into a folder of bundles."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from gateway.cli.terminal import plain, reported


@reported
def pull(
    source: Annotated[
        str, typer.Argument(help="s3://BUCKET/PATH or oci://REGISTRY/NAME:TAG (or @sha256:DIGEST).", metavar="SOURCE")
    ],
    into: Annotated[Path, typer.Option(help="Folder of bundles; the bundle is put into NAME/VERSION in it.")] = Path(
        "models"
    ),
    trust: Annotated[
        list[Path] | None,
        typer.Option(help="Public key or root certificate (PEM) that must have signed it (default: PALISADE_TRUST)."),
    ] = None,
    max_bytes: Annotated[int, typer.Option(min=1, help="Bytes of the largest bundle that is fetched.")] = 4 << 30,
    max_seconds: Annotated[float, typer.Option(min=1, help="Seconds that it may take.")] = 3600,
) -> None:
    """Fetch a bundle, check it as a gateway would, and only then put it where a gateway finds it.

    Only files that its manifest lists are fetched. A stop in the middle leaves nothing; a bundle that is there already
    is checked and not fetched again. Needs the extra `remote`; credentials are those of the environment (AWS_...) and
    of the container tools (~/.docker/config.json).
    """
    from gateway.pulling.pull import pull as fetch
    from gateway.settings import load_settings

    demands = (load_settings(trust=trust) if trust else load_settings()).demands
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("manifest.json", total=None)
        pulled = fetch(
            source,
            into,
            demands,
            max_bytes=max_bytes,
            max_seconds=max_seconds,
            progress=lambda name, number, count: bar.update(
                task, description=plain(name), completed=number, total=count
            ),
        )
    signed = ", signed by a trusted key" if demands.trusted else ""
    how = "fetched" if pulled.fetched else "is there already"
    typer.echo(f"{pulled.folder}: {pulled.manifest.name} {pulled.manifest.version} {how}{signed}")
