"""`palisade guard calibrate`: the bundle of a model that another server serves."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from gateway.settings import load_settings
from gateway.upstream.connection import Connection
from training.bundling.guard import FRACTIONS, find_upstream, guard
from training.bundling.wrap import image_folder
from training.commands.input_options import Antialias, Arithmetic, Channels, Filter, Normalise, Rule, Scale, Size
from training.commands.terminal import command, console, progress_bars
from training.commands.wrap import Data, Force, PerClass, Seed, Version
from training.errors import TrainingError
from training.models.forms.labels import read_labels
from training.preprocessing import read_preprocessing
from training.preprocessing.options import DEFAULT, Options


@command
def calibrate(
    upstream: Annotated[
        str,
        typer.Option(
            help="Server of the Open Inference Protocol v2 (Triton, KServe, MLServer, Palisade), as http://HOST:PORT, "
            "or a YAML file that describes a plain HTTP classifier (docs/guard.md)."
        ),
    ],
    data: Data,
    out: Annotated[Path, typer.Option(help="Folder of the bundle.")] = Path("models/guarded"),
    model: Annotated[str | None, typer.Option(help="Name of the model, where the server has several.")] = None,
    labels: Annotated[
        Path | None, typer.Option(help="File with the classes' names in the model's order, one a line.")
    ] = None,
    preprocessing: Annotated[
        Path | None, typer.Option(help="JSON file of its preprocessing, such as preprocessor_config.json.")
    ] = None,
    size: Size = None,
    resize: Rule = None,
    filter_: Filter = None,
    antialias: Antialias = None,
    arithmetic: Arithmetic = None,
    channels: Channels = None,
    scale: Scale = None,
    normalise: Normalise = None,
    values: Annotated[
        Literal["logits", "probabilities"] | None, typer.Option(help="What its numbers are (default: as they look).")
    ] = None,
    input_name: Annotated[str | None, typer.Option("--input", help="Name of its input, where it has several.")] = None,
    output_name: Annotated[str | None, typer.Option("--output", help="Name of its output with the scores.")] = None,
    max_rows: Annotated[
        int | None, typer.Option(min=1, max=4096, help="Rows of the largest request (default: the server's, or 64).")
    ] = None,
    timeout: Annotated[float, typer.Option(min=0.1, help="Seconds that a batch may take.")] = 30.0,
    images_per_class: PerClass = None,
    seed: Seed = 0,
    version: Version = "1.0.0",
    force: Force = False,
) -> None:
    """Calibrate a defence of a model that another server serves, on images that it was not trained on.

    With train/ and test/ in the folder, benign scores come from test/ alone. A token for the server is read from
    PALISADE_UPSTREAM_TOKEN.
    """
    token = load_settings().upstream_token
    with Connection(timeout=timeout, token=token) as connection:
        asked = find_upstream(
            upstream, connection, model=model, input_name=input_name, output_name=output_name, max_rows=max_rows
        )
    options = Options(size, resize, filter_, antialias, arithmetic, channels, scale, normalise)
    chosen = options.over(DEFAULT if preprocessing is None else read_preprocessing(preprocessing))
    side = chosen.side or (None if asked.size is None else asked.size[0])
    if side is None:
        raise TrainingError(f"{upstream}: states no size of its images: give --size")
    spec = image_folder(data, size=side, resize=chosen.served, seed=seed, images_per_class=images_per_class, seen=True)
    if not spec.held_out:
        spec = spec.model_copy(update={"fractions": FRACTIONS})
    with progress_bars() as bars:
        made = guard(
            asked,
            spec,
            out,
            labels=None if labels is None else read_labels(labels),
            values=values,
            normalise=chosen.normalise,
            version=version,
            timeout=timeout,
            token=token,
            force=force,
            report=bars,
        )
    for note in made.data.notes:
        console.print(note)
    calibration, classes = made.bundle.calibration("cpu"), len(made.data.classes)
    console.print(_accuracy(made.accuracy, calibration.n, classes))
    console.print(
        f"benign test images flagged at alpha {made.bundle.manifest.policy.alpha:g}: {made.flagged} of {made.tested}"
    )
    console.print(
        f"{out}: {made.bundle.name} {made.bundle.version}, calibrated on {calibration.n} images in "
        f"{calibration.groups} groups; serve it: palisade guard --upstream {_address(upstream)} --models {out}"
    )


def _accuracy(accuracy: float | None, n: int, classes: int) -> str:
    if accuracy is None:
        return "the images have no labels: that the server gets its images as it expects them cannot be checked"
    text = f"the upstream's accuracy on the calibrate split: {accuracy:.4f} (n = {n}, {classes} classes)"
    if accuracy < 2 / classes:
        text += "\nthis is hardly better than chance: check --normalise, --scale, --channels and --labels"
    return text


def _address(upstream: str) -> str:
    return upstream if upstream.startswith("http") else "URL"
