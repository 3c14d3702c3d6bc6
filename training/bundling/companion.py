"""A companion for a network of any size, trained from a folder of images, and how a wrapped network shares its splits.

It sees images averaged down to few pixels (`training.models.averaged`), so that adversarial training takes CPU hours
whatever size the answering network sees.
"""

from __future__ import annotations

from pathlib import Path

from training.bundling.answered import answered
from training.bundling.assemble import Report, Silent
from training.bundling.opening import network_of, open_named
from training.bundling.preprocessing import Wanted, read_as
from training.bundling.provenance import enough_images, load_data
from training.data.augment import Augmentation
from training.errors import TrainingError
from training.loop.runs import recipe_at
from training.loop.selection import accuracy
from training.loop.train import settled_all, train
from training.models import ModelSpec
from training.recipes.training import Adversary, DataSpec, Recipe, Stage

SIDE = 32
"""Pixels a side that larger images are averaged down to, unless another side is asked for."""
# Strong changes are what a small network cannot learn on top of the adversary.
MILD = Augmentation(rotate=5, translate=0.06, scale=0.08, shear=0.04, brightness=0.15, contrast=0.15)
_SPLITS = ("split_seed", "fractions", "held_out", "test_share", "pool_scarce", "images_per_class")


def companion_recipe(
    name: str, arch: str, data: DataSpec, *, epochs: int, batch: int, side: int | None = None
) -> Recipe:
    """Adversarial training (PGD-3 at 8/255, clean images too) with an average of the weights.

    `side` is what images are averaged down to; by default `SIDE` for the small residual network, and for any other
    architecture the images' own.
    """
    late = max(1, epochs // 4)
    adversary = Adversary(eps=8, steps=3, clean_weight=1.0)
    stages = [
        Stage(name="adversarial", epochs=max(1, epochs - late), lr=0.05, adversary=adversary),
        Stage(name="settle", epochs=late, lr=0.01, adversary=adversary),
    ]
    model = _model(arch, data.size or 32, side)
    return Recipe(
        name=f"{name}-companion", data=data, model=model, stages=stages, batch=batch, augmentation=MILD, ema=0.99
    )


def _model(arch: str, size: int, side: int | None) -> ModelSpec:
    """The architecture for images of `size` pixels; the small residual network has about 32 pixels after its stem."""
    if side is None and arch == "small_resnet" and size >= 2 * SIDE:
        side = SIDE
    if side is not None and side > size:
        raise TrainingError(f"the companion's side is {side}, the images have {size} pixels; choose at most that")
    seen = side or size
    if arch != "small_resnet" or seen <= 48:
        return ModelSpec(arch=arch, side=side)
    return ModelSpec(stem_stride=2 if seen <= 96 else 4, blocks=(1, 1, 1) if seen <= 96 else (1, 1, 1, 1), side=side)


def train_companion(
    name: str,
    model: str,
    weights: Path | None,
    data: DataSpec,
    *,
    runs: Path,
    labels: Path | None = None,
    wanted: Wanted = Wanted(),
    arch: str = "small_resnet",
    side: int | None = None,
    epochs: int = 30,
    batch: int = 64,
    report: Report | None = None,
) -> tuple[Path, float]:
    """Train a companion for the network `model`, which stays as it is: the folder of the run, accuracy on `select`.

    The network gives the names of the classes, what images become before it sees them (as `wanted`, by default what its
    file states), and, where images have no labels, its answers. Raises `TrainingError`.
    """
    report = report or Silent()
    if data.fractions[0] == 0:  # `wrap` alone trains nothing
        data = data.model_copy(update={"fractions": DataSpec.model_fields["fractions"].default})
    opened_side = wanted.side(model)
    opened = open_named(model, weights=weights, labels=labels, data=data, side=opened_side)
    chosen = wanted.of(opened, opened_side)
    data = read_as(data, chosen)
    if opened.classes is not None:
        data = data.model_copy(update={"classes": opened.classes})
    recipe = companion_recipe(name, arch, data, epochs=epochs, batch=batch, side=side)
    recipe = settled_all({"companion": recipe}, runs)["companion"]
    classes = len(enough_images(recipe).classes)
    images = load_data(recipe, report.step)
    if not images.labelled:
        network = network_of(opened, weights, classes=classes, found=chosen)
        images = answered(images, network.eval())
    trained = train(recipe, images, runs=runs, report=report.training)
    return runs / recipe.name, accuracy(trained, images.select, batch=64)


def split_as(run: Path, data: DataSpec) -> DataSpec:
    """`data` dealt as the companion's run in the folder `run` had it, so that what it has seen calibrates nothing."""
    dealt = recipe_at(run).data
    return data.model_copy(update={name: getattr(dealt, name) for name in _SPLITS})
