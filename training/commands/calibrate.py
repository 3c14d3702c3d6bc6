"""`palisade calibrate`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from training.bundling.recalibrate import recalibrate
from training.commands.terminal import BundlePath, command, console, progress_bars


@command
def calibrate(
    bundle: BundlePath,
    out: Annotated[Path, typer.Option(help="Folder of the new bundle.")],
    version: Annotated[
        str,
        typer.Option(
            help="Version of the new bundle, such as 1.4.1: higher than the old one, which is served otherwise."
        ),
    ],
    device: Annotated[Literal["cpu", "cuda"], typer.Option(help="Device that will serve the bundle.")] = "cuda",
    precision: Annotated[
        Literal["fp32", "fp16"], typer.Option(help="Precision to calibrate for; missing fp16 graphs are made.")
    ] = "fp32",
) -> None:
    """Calibrate a bundle on the machine that will serve it, beside or in place of what it has, into a new bundle.

    The benign images are those that the bundle was made with. The card stays as it is: of the CPU and fp32.
    """
    with progress_bars() as bars:
        made = recalibrate(bundle, out, version=version, provider=device, precision=precision, progress=bars.step)
    have = ", ".join(calibration.key for calibration in made.manifest.calibrations)
    console.print(f"{out}: {made.name} {made.version}, calibrated for {have}; serve it: palisade serve --models {out}")
