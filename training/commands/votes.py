"""`palisade votes`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

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
    by: Annotated[
        Literal["masks", "small_field"] | None,
        typer.Option(help="What votes (default: the network of small fields, where the bundle has one; else masks)."),
    ] = None,
    whole: Annotated[
        float | None,
        typer.Option(
            min=0.01,
            max=1,
            help="How the network of small fields hears of the whole image: smaller finds more bars, stickers and "
            "shadows, and guarantees less against patches (default: 0.25; 1: windows alone).",
        ),
    ] = None,
    version: Annotated[
        str | None,
        typer.Option(help="Version of the new bundle; default: the old one, since nothing changes without votes."),
    ] = None,
    threads: Threads = None,
) -> None:
    """Calibrate masks that vote on verdicts (PALISADE_VOTES), in a new bundle.

    Each mask hides every patch that lies behind it, so that no patch can change what is answered under that mask. An
    image whose label a mask contradicts more surely than it does for benign images is flagged. The network of small
    fields does the same with windows of its cells, in one forward pass in place of sixteen.
    """
    use_threads(threads)
    with progress_bars() as bars:
        made = with_votes(
            bundle,
            out,
            patch=patch,
            masks_per_axis=masks,
            by=by,
            whole=whole,
            version=version,
            progress=bars.step,
        )
    rule = made.calibration("cpu", "fp32").votes
    assert rule is not None
    who = "masks" if rule.by == "masks" else "windows of cells"
    console.print(
        f"{out}: {made.name} {made.version} has {who} that vote, for patches of {rule.patch} pixels, calibrated on "
        f"{rule.n:,} images in {rule.groups:,} groups"
    )
    try:
        Pipeline.on(open_pipeline(made).engine, made, votes=True)
    except ValueError as error:  # with the policy's alpha; others may do
        console.print(f"[yellow]{error}[/yellow]")
