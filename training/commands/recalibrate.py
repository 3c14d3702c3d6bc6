"""`palisade recalibrate`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from training.bundling.reviewed import from_reviews, open_store
from training.commands.terminal import BundlePath, command, console, progress_bars


@command
def recalibrate(
    bundle: BundlePath,
    from_reviews_: Annotated[
        str,
        typer.Option(
            "--from-reviews",
            help="Where the gateway keeps its events: PALISADE_DATA_DIR, or the URL of PALISADE_AUDIT_URL.",
            metavar="FOLDER|URL",
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder of the new bundle.")],
    version: Annotated[
        str | None,
        typer.Option(help="Version of the new bundle; default: the old one with -reviews.1, which is lower than it."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed by which groups are dealt to tails and p-values.")] = 0,
) -> None:
    """Calibrate a bundle on the traffic that its gateway has seen: the uniform sample, sorted by its reviewers.

    Flagged events of the sample have to be reviewed before. Nothing is activated: put the new version in shadow,
    compare, and activate it.
    """
    store = open_store(from_reviews_)
    try:
        with progress_bars() as bars:
            made, found = from_reviews(bundle, out, store, version=version, seed=seed, progress=bars.step)
    finally:
        store.close()
    calibration = made.calibration("cpu", "fp32")
    console.print(
        f"{out}: {made.name} {made.version}, calibrated on {calibration.n:,} images in {calibration.groups:,} groups "
        f"of the sample ({found.confirmed} confirmed attacks left out, {found.unpictured} events without picture)"
    )
    others = [each.key for each in made.manifest.calibrations if each.key != calibration.key]
    if others:
        named = " or ".join(others)
        console.print(f"only {calibration.key} is calibrated anew: a gateway that serves with {named} judges as before")
    console.print(f"next: palisade models shadow {made.name} {made.version}; compare; palisade models activate")
