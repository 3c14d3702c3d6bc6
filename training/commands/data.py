"""`palisade data`: data sets as their authors publish them, converted."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from training.commands.terminal import command, console, progress_bars
from training.data.gtsrb import convert_gtsrb

app = typer.Typer(no_args_is_help=True, help="Convert data sets.")


@app.command()
@command
def gtsrb(
    sources: Annotated[
        list[Path],
        typer.Argument(help="GTSRB_Final_Training_Images.zip, _Test_Images.zip and _Test_GT.zip, or their folders."),
    ],
    out: Annotated[Path, typer.Option(help="The .npz file to write.")] = Path("data/gtsrb32.npz"),
    size: Annotated[int, typer.Option(min=8, max=1024, help="Side of the images in pixels.")] = 32,
) -> None:
    """Convert the German traffic signs as published into one file with the track of each physical sign."""
    with progress_bars() as bars:
        n = convert_gtsrb(sources, out, size=size, progress=bars.step)
    console.print(
        f"{out}: {n['training']} training images of {n['tracks']} signs and {n['test']} test images of {n['classes']} "
        f"classes; in a recipe: source: npz:{out.stem}"
    )
