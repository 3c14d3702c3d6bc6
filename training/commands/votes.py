"""`palisade votes`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gateway.core.pipeline import Pipeline
from training.bundling.votes import with_votes
from training.commands.terminal import BundlePath, Threads, command, console, progress_bars, use_threads
from training.served.answers import open_pipeline


@command
def votes(
    bundle: BundlePath,
    out: Annotated[Path, typer.Option(help="Folder of the new bundle.")],
    patch: Annotated[
        int | None,
        typer.Option(min=1, help="Side of the patches, in pixels of the network's input (default: 5 % of the image)."),
    ] = None,
    masks: Annotated[
        int | None, typer.Option(min=2, max=8, help="Masks an axis (default: 4, and 3 from 64 pixels on).")
    ] = None,
    version: Annotated[
        str | None,
        typer.Option(help="Version of the new bundle; default: the old one, since nothing changes without votes."),
    ] = None,
    threads: Threads = None,
) -> None:
    """Calibrate masks that vote on verdicts (PALISADE_VOTES), in a new bundle.

    Each mask hides every patch that lies behind it, so that no patch can change what is answered under that mask. An
    image whose label another mask contradicts more surely than it does for benign images is flagged.
    """
    use_threads(threads)
    with progress_bars() as bars:
        made = with_votes(bundle, out, patch=patch, masks_per_axis=masks, version=version, progress=bars.step)
    rule = made.calibration("cpu", "fp32").votes
    assert rule is not None
    console.print(
        f"{out}: {made.name} {made.version} has masks that vote, for patches of {rule.patch} pixels, calibrated on "
        f"{rule.n:,} images in {rule.groups:,} groups"
    )
    try:
        Pipeline.on(open_pipeline(made).engine, made, votes=True)
    except ValueError as error:  # with the policy's alpha; others may do
        console.print(f"[yellow]{error}[/yellow]")
