"""`palisade companion`: an adversarially trained second network for a model that stays as it is."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from training.bundling.companion import train_companion
from training.bundling.wrap import slug
from training.commands.terminal import Runs, Threads, command, console, progress_bars, use_threads
from training.commands.wrap import (
    Batch,
    Data,
    Labels,
    LowSide,
    Model,
    Normalise,
    PerClass,
    Rule,
    Seed,
    Size,
    Weights,
    spec_of,
)


@command
def companion(
    model: Model,
    data: Data,
    weights: Weights = None,
    labels: Labels = None,
    side: LowSide = None,
    epochs: Annotated[int, typer.Option(min=2, help="Training epochs.")] = 30,
    arch: Annotated[
        str,
        typer.Option(help="Architecture: small_resnet, torchvision:NAME, MODULE:FACTORY or FILE.py:FACTORY."),
    ] = "small_resnet",
    batch: Batch = 64,
    runs: Runs = Path("runs"),
    size: Size = 224,
    resize: Rule = "center_crop",
    normalise: Normalise = None,
    images_per_class: PerClass = None,
    seed: Seed = 0,
    threads: Threads = None,
) -> None:
    """Train only a companion, for a model that stays as it is; then pass its run to `palisade wrap --companion`.

    It sees the images averaged down, so that training takes CPU hours at any size of image. Options that both commands
    have must be the same. A stopped run resumes from its last finished epoch.
    """
    use_threads(threads)
    spec = spec_of(data, size, resize, seed, images_per_class, seen=True)
    with progress_bars() as bars:
        run, right = train_companion(
            slug(model),
            model,
            weights,
            spec,
            runs=runs,
            labels=labels,
            normalise=normalise,
            arch=arch,
            side=side,
            epochs=epochs,
            batch=batch,
            report=bars,
        )
    console.print(
        f"{run}: accuracy on the select split {right:.4f}; next: palisade wrap {model} --data {data} --companion {run}",
        soft_wrap=True,
    )
