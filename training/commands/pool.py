"""`palisade pool`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from training.bundling.pool import HARMED, with_pool
from training.commands.terminal import BundlePath, Threads, command, console, progress_bars, use_threads


@command
def pool(
    bundle: BundlePath,
    out: Annotated[Path, typer.Option(help="Folder of the new bundle.")],
    harmed: Annotated[
        float,
        typer.Option(min=0, max=1, help="Share of benign images whose right answer the pool may take away."),
    ] = HARMED,
    version: Annotated[
        str | None,
        typer.Option(help="Version of the new bundle; default: the old one, whose networks and verdicts it keeps."),
    ] = None,
    threads: Threads = None,
) -> None:
    """Fit a pool of all networks that answer together, in a new bundle; gateways use it unless PALISADE_POOL is false.

    The probabilities of the answering network, its companion and the network of small fields are averaged, and the best
    label is served if it leads the first answer by a fitted threshold.
    """
    use_threads(threads)
    with progress_bars() as bars:
        made = with_pool(bundle, out, harmed=harmed, version=version, progress=bars.step)
    rule = made.calibration("cpu", "fp32").pool
    assert rule is not None
    who = "answering network and companion" if rule.small_field is None else "all three networks"
    console.print(
        f"{out}: {made.name} {made.version} has a pool of {who}, fitted on {rule.n:,} images in "
        f"{rule.groups:,} groups; "
        f"it overrules the first answer by a lead of {rule.threshold:.3f}",
        markup=False,
        soft_wrap=True,
    )
