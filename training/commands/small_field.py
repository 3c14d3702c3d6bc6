"""`palisade small-field`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from training.bundling.small_field import with_small_field
from training.commands.terminal import BundlePath, command, console
from training.loop.weights import weights_at
from training.served.answers import open_pipeline


@command
def small_field(
    bundle: BundlePath,
    weights: Annotated[
        str,
        typer.Option(help="File of `palisade weights` of a network of the architecture small_field."),
    ],
    out: Annotated[Path, typer.Option(help="Folder of the new bundle.")],
    version: Annotated[
        str | None,
        typer.Option(help="Version of the new bundle; default: the old one, since its answers and verdicts stay."),
    ] = None,
) -> None:
    """Give a bundle a network of small fields, which certifies labels in one forward pass, in a new bundle.

    Each of its cells sees a few pixels, so that a small patch reaches a few cells alone, whatever it shows. It is
    asked before masks are (`certify=patch`), or alone (`certify=small_field`).
    """
    made = with_small_field(bundle, out, weights_at(weights), version=version)
    found = open_pipeline(made).small_field
    assert found is not None
    console.print(
        f"{out}: {made.name} {made.version} has a network of {found.spec.height} x {found.spec.width} cells that see "
        f"{found.spec.field} x {found.spec.field} pixels each"
    )
