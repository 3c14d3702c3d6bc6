"""`palisade companion`: an adversarially trained second network for a model that stays as it is."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gateway.core.preprocessing import Resize
from training.bundling.companion import train_companion
from training.bundling.preprocessing import AUTO, FIND, Wanted
from training.bundling.wrap import slug
from training.commands.input_options import Antialias, Arithmetic, Channels, Filter, Normalise, Rule, Scale, Size
from training.commands.terminal import Runs, Threads, command, console, progress_bars, use_threads
from training.commands.wrap import Batch, Data, Labels, LowSide, Model, PerClass, Seed, Weights, spec_of
from training.errors import PreprocessingError
from training.preprocessing.options import Options


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
    preprocessing: Annotated[
        str, typer.Option(help="As of `wrap`: auto (as the model's file states), or a JSON file. Options go before it.")
    ] = AUTO,
    size: Size = None,
    resize: Rule = None,
    filter_: Filter = None,
    antialias: Antialias = None,
    arithmetic: Arithmetic = None,
    channels: Channels = None,
    scale: Scale = None,
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
    if preprocessing == FIND:
        raise PreprocessingError(
            "`palisade companion` cannot find a preprocessing: pass what `palisade wrap` has found"
        )
    options = Options(size, resize, filter_, antialias, arithmetic, channels, scale, normalise)
    spec = spec_of(data, None, Resize(), seed, images_per_class, seen=True)
    with progress_bars() as bars:
        run, right = train_companion(
            slug(model),
            model,
            weights,
            spec,
            runs=runs,
            labels=labels,
            wanted=Wanted(preprocessing, options),
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
