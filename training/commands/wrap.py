"""`palisade wrap` and `palisade harden`: networks and data that users bring."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from pydantic import ValidationError

from gateway.core.loading import Bundle
from gateway.core.preprocessing import Resize
from training.bundling.preprocessing import AUTO, SIDE, Wanted
from training.bundling.trial import Trial, table
from training.bundling.wrap import harden as harden_network
from training.bundling.wrap import image_folder, slug
from training.bundling.wrap import wrap as wrap_network
from training.commands.input_options import (
    Antialias,
    Arithmetic,
    Channels,
    Filter,
    Normalise,
    Preprocessing,
    Rule,
    Scale,
    Size,
    show_found,
)
from training.commands.terminal import Runs, Threads, command, console, progress_bars, use_threads
from training.data.dataset import Dataset
from training.errors import TrainingError
from training.preprocessing.options import DEFAULT, Options
from training.preprocessing.words import in_words
from training.recipes.training import DataSpec

Model = Annotated[
    str,
    typer.Argument(
        help="The network: torchvision:NAME, timm:NAME, model.onnx, model.pt2 (torch.export), a Hugging Face folder, "
        "or a function of your code that returns it: FILE.py:FACTORY such as nets/mine.py:make, or MODULE:FACTORY."
    ),
]
Data = Annotated[Path, typer.Option(help="Image folder: train/<class>/* and test/<class>/*, or <class>/* alone.")]
Out = Annotated[Path | None, typer.Option(help="Folder of the bundle; default: models/<name of the network>.")]
PerClass = Annotated[
    int | None, typer.Option(min=4, help="Largest number of images read per class and part (default: all).")
]
Seed = Annotated[int, typer.Option(help="Seed for the data splits.")]
Version = Annotated[str, typer.Option(help="Version of the bundle.")]
Samples = Annotated[int, typer.Option(min=1, max=50, help="Number of samples of each kind: clean, attacked, patched.")]
Weights = Annotated[
    Path | None, typer.Option(help="The trained tensors, a .safetensors file, where the model has none inside.")
]
Labels = Annotated[
    Path | None, typer.Option(help="Names of the classes in the order of the logits: a line each, or JSON.")
]
Batch = Annotated[int, typer.Option(min=8, help="Batch size: images per training step.")]
LowSide = Annotated[
    int | None,
    typer.Option(
        min=16,
        max=1024,
        help="Side in pixels that the companion sees images averaged down to; default: 32 of larger images.",
    ),
]
Force = Annotated[bool, typer.Option("--force", help="Replace an existing bundle.")]


@command
def wrap(
    model: Model,
    data: Data,
    weights: Weights = None,
    labels: Labels = None,
    out: Out = None,
    companion: Annotated[
        str, typer.Option(help="Folder of a finished run on the same images (palisade companion), or none.")
    ] = "none",
    preprocessing: Preprocessing = AUTO,
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
    version: Version = "1.0.0",
    description: Annotated[str, typer.Option(help="What people read about the bundle: origin, licence.")] = "",
    samples: Samples = 2,
    force: Force = False,
    threads: Threads = None,
) -> None:
    """Defend a trained network as it is: calibrate on images that it was not trained on, and export a bundle.

    With train/ and test/ in the folder, benign scores come from test/ alone. Without a companion an attacker who knows
    the defence is not stopped (docs/threat-model.md).
    """
    use_threads(threads)
    options = Options(size, resize, filter_, antialias, arithmetic, channels, scale, normalise)
    spec = spec_of(data, None, Resize(), seed, images_per_class, seen=True)
    place = out or Path("models") / slug(model)
    with progress_bars() as bars:
        made, images, right, chosen, found = wrap_network(
            model,
            weights,
            spec,
            place,
            wanted=Wanted(preprocessing, options),
            labels=labels,
            version=version,
            description=description,
            samples=samples,
            force=force,
            companion=None if companion == "none" else Path(companion),
            report=bars,
        )
    if found is not None:
        show_found(found, console.print)
    console.print(f"preprocessing: {in_words(chosen)} ({chosen.source})", soft_wrap=True, highlight=False)
    classes = len(images.classes)
    if right is None:
        console.print("images without labels: the network's own answers stand in for them, its accuracy is not known")
    else:
        console.print(f"accuracy on the select split: {right:.4f} (n = {len(images.select)}, {classes} classes)")
    if right is not None and right < 2 / classes:
        console.print("this is hardly better than chance: try --preprocessing find, and check the order of the classes")
    _report(made, images, place)


@command
def harden(
    model: Model,
    data: Data,
    out: Out = None,
    size: Size = None,
    resize: Rule = None,
    filter_: Filter = None,
    antialias: Antialias = None,
    epochs: Annotated[
        int, typer.Option(min=2, help="Training epochs of the answering network, and of its companion.")
    ] = 30,
    companion_model: Annotated[
        str,
        typer.Option(
            help="Architecture of the companion: small_resnet, torchvision:NAME, MODULE:FACTORY or FILE.py:FACTORY."
        ),
    ] = "small_resnet",
    companion_side: LowSide = None,
    batch: Batch = 64,
    runs: Runs = Path("runs"),
    images_per_class: PerClass = None,
    seed: Seed = 0,
    version: Version = "1.0.0",
    samples: Samples = 2,
    force: Force = False,
    threads: Threads = None,
) -> None:
    """Train a network and an adversarially trained companion on your images, and export their bundle.

    A stopped run resumes from its last finished epoch. The recipes are written into the run folders: a place to start
    from; `palisade train` and `palisade build` take changed ones.
    """
    use_threads(threads)
    rule = Options(None, resize, filter_, antialias).over(DEFAULT).served
    spec = spec_of(data, size or SIDE, rule, seed, images_per_class, seen=False)
    place = out or Path("models") / slug(model)
    with progress_bars() as bars:
        made, images = harden_network(
            model,
            spec,
            place,
            runs=runs,
            epochs=epochs,
            companion=companion_model,
            companion_side=companion_side,
            batch=batch,
            version=version,
            samples=samples,
            force=force,
            report=bars,
        )
    _report(made, images, place)


def spec_of(data: Path, size: int | None, resize: Resize, seed: int, per_class: int | None, *, seen: bool) -> DataSpec:
    """The image folder as the options of a command describe it (`image_folder`)."""
    try:
        return image_folder(data, size=size, resize=resize, seed=seed, images_per_class=per_class, seen=seen)
    except ValidationError as error:
        raise TrainingError(str(error).splitlines()[0]) from None


def _report(bundle: Bundle, images: Dataset, out: Path) -> None:
    training = bundle.manifest.training
    for note in [*images.notes, *training.get("notes", [])]:
        console.print(f"note: {note}", soft_wrap=True, highlight=False)
    for line in table(Trial.model_validate(training["trial"])):
        console.print(line, soft_wrap=True, highlight=False)
    calibration = bundle.calibration("cpu")
    console.print(
        f"{out}: {bundle.name} {bundle.version}, calibrated on {calibration.n} images in {calibration.groups} groups; "
        f"no card yet (palisade evaluate {out}); serve it: palisade serve --models {out}"
    )
