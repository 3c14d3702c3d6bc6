"""`palisade kinds`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from training.bundling.kinds import with_kinds
from training.commands.terminal import BundlePath, Threads, command, console, progress_bars, use_threads


@command
def kinds(
    bundle: BundlePath,
    out: Annotated[Path, typer.Option(help="Folder of the new bundle.")],
    version: Annotated[
        str | None,
        typer.Option(help="Version of the new bundle; default: the old one, since no answer and no flag changes."),
    ] = None,
    threads: Threads = None,
) -> None:
    """Let a bundle tell unfamiliar images from attacked ones, in a new bundle.

    The rule is fitted on the select split: as it is, made strange, and attacked. Its p-values come from the calibrate
    split. Scores, p-values, cutoffs and flags stay as they are.
    """
    use_threads(threads)
    with progress_bars() as bars:
        made = with_kinds(bundle, out, version=version, threads=threads or 0, progress=bars.step)
    rule = made.calibration("cpu", "fp32").kinds
    assert rule is not None
    console.print(
        f"{out}: {made.name} {made.version} tells kinds of anomaly apart, fitted on {sum(rule.fitted.values()):,} "
        f"images, calibrated on {rule.n:,} in {rule.groups:,} groups"
    )
