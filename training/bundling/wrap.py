"""Bundles of networks that users bring: wrapped as they are, or trained on their images.

`wrap` calibrates and exports a trained network and changes no weight; `harden` trains an answering network of a named
architecture and a companion, with recipes that are a place to start from.
"""

from __future__ import annotations

import re
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ValidationError

from gateway.core.loading import Bundle, load_bundle
from gateway.core.manifest import BUCKETS, DRAFT, Policy
from gateway.core.preprocessing import Preprocessing, Resize
from gateway.errors import PalisadeError
from training.bundling.answered import answered
from training.bundling.assemble import Plan, Report, Silent, assemble, check_free
from training.bundling.calibrate import GUARD, SCREENED_BY, TRUSTED, enough_to_calibrate
from training.bundling.companion import companion_recipe, split_as
from training.bundling.networks import ROLES
from training.bundling.opening import network_of, open_named
from training.bundling.preprocessing import Wanted, found_on, read_as
from training.bundling.provenance import Wrapped, enough_images, load_data
from training.bundling.samples import Effort
from training.data.dataset import Dataset, folder_at
from training.data.folders import TEST_SHARE
from training.data.layouts import has_test_part
from training.defence.constants import batch_of
from training.defence.scores import SCORES, default_scores
from training.errors import ExportError, TrainingError
from training.loop.runs import load_run
from training.loop.selection import accuracy
from training.loop.train import settled_all, train
from training.models import ARCHS, ModelSpec
from training.models.forms import keep
from training.models.network import Network
from training.preprocessing.find import Found
from training.recipes.evaluation import Evaluation
from training.recipes.training import DataSpec, MaskAugmentation, Recipe, Stage
from training.util.atomic import draft_of

# Of the test part where there is one: the network has seen the training part. Order: test, select, calibrate.
HELD_OUT = (0.2, 0.3, 0.5)
# Of a folder of classes alone: the test part, and of what is left train (nothing: constants are fitted on select),
# select and calibrate.
UNSEEN_TEST = 0.15
UNSEEN = (0.0, 0.41, 0.59)
EXPORTABLE = "write that part of the network in operators that ONNX has, with sizes that do not depend on values"
LARGE = 96  # images of more pixels a side are served in smaller batches


class Wrap(NamedTuple):
    """A finished bundle, its data, its accuracy on `select` (None without labels), and how images were prepared.

    `found` is what was tried where the preprocessing was to be found.
    """

    bundle: Bundle
    data: Dataset
    accuracy: float | None
    preprocessing: Preprocessing
    found: Found | None


def wrap(
    model: str,
    weights: Path | None,
    data: DataSpec,
    out: Path,
    *,
    wanted: Wanted = Wanted(),
    labels: Path | None = None,
    version: str = "1.0.0",
    description: str = "",
    companion: Path | None = None,
    samples: int = 2,
    force: bool = False,
    report: Report | None = None,
) -> Wrap:
    """The bundle in `out` of the network `model` as it is.

    `model` is an architecture of ours or of any form in `training.models.forms`. Its preprocessing is what is `wanted`,
    whatever size and rule `data` has: by default what its file states. Images may be of some of the model's classes
    alone; where they have no labels the network's answers stand in for them, and no accuracy is known. `companion` is
    the folder of a run trained on the same data, whose splits are taken over. Raises `TrainingError`; `out` is replaced
    only by a finished bundle, and only if `force`.
    """
    report = report or Silent()
    check_free(out, force=force)
    _named(model, version)
    if companion is not None:
        data = split_as(companion, data)
    side = wanted.side(model)
    opened = open_named(model, weights=weights, labels=labels, data=data, side=side)
    if opened.classes is not None:
        data = data.model_copy(update={"classes": opened.classes})
    settings = Wrapped(name=slug(out.name), wrapped=opened.digest, data=data, model=ModelSpec(arch=opened.arch))
    classes = len(enough_images(settings).classes)  # before images are read
    chosen, found = wanted.of(opened, side), None
    network = network_of(opened, weights, classes=classes, found=chosen)
    if wanted.finds:
        found = found_on(opened.body, chosen, load_data(settings, unread=True), report.step)
        chosen = found.best
        network = network_of(opened, weights, classes=classes, found=chosen)
    data = read_as(data, chosen)
    settings = settings.model_copy(update={"data": data})
    loaded = load_data(settings, report.step)
    networks: dict[str, Network] = {"standard": network.eval()}
    images = answered(loaded, networks["standard"])
    training = {"standard": settings.model_dump(mode="json"), "evaluation": Evaluation().model_dump(mode="json")}
    if companion is not None:
        recipe, networks["companion"] = load_run(companion, images)
        training["companion"] = recipe.model_dump(mode="json")
    right = None
    if loaded.labelled:
        right = accuracy(network, images.select, batch=batch_of(*images.select.x.shape[1:3]))
    plan = _plan(slug(out.name), version, training, data.resize, images, samples=samples, alone=companion is None)
    normalise = None if opened.arch in ARCHS else chosen.normalise  # ours have it in their weights
    plan = replace(plan, description=description, keep=partial(keep, opened), normalise=normalise)
    return Wrap(_bundled(out, plan, networks, images, report), images, right, chosen, found)


def harden(
    model: str,
    data: DataSpec,
    out: Path,
    *,
    runs: Path,
    epochs: int = 30,
    companion: str = "small_resnet",
    companion_side: int | None = None,
    batch: int = 64,
    version: str = "1.0.0",
    samples: int = 2,
    force: bool = False,
    report: Report | None = None,
) -> tuple[Bundle, Dataset]:
    """Train `model` and a companion on `data`, each for `epochs` epochs, and put their bundle into `out`.

    `companion_side`: the pixels a side that the companion sees (`training.bundling.companion`).
    """
    report = report or Silent()
    check_free(out, force=force)
    name = slug(out.name)
    _named(model, version)
    _named(companion, version)
    recipes = recipes_for(name, model, companion, data, epochs=epochs, batch=batch, side=companion_side)
    recipes = settled_all(recipes, runs)
    enough_images(recipes["standard"])
    images = load_data(recipes["standard"], report.step)
    enough_to_calibrate(images)
    networks = {role: train(recipes[role], images, runs=runs, report=report.training) for role in ROLES}
    training = {role: recipe.model_dump(mode="json") for role, recipe in recipes.items()}
    training |= {"evaluation": Evaluation().model_dump(mode="json")}
    plan = _plan(name, version, training, data.resize, images, samples=samples, alone=False)
    return _bundled(out, plan, networks, images, report), images


def recipes_for(
    name: str, model: str, companion: str, data: DataSpec, *, epochs: int, batch: int, side: int | None = None
) -> dict[str, Recipe]:
    """Recipes of the answering network (then mask augmentation) and of its companion (adversarial)."""
    late = max(1, epochs // 4)
    masks = Stage(name="mask", epochs=late, lr=0.02, mask_augmentation=MaskAugmentation())
    learnt = [Stage(name="standard", epochs=max(1, epochs - late), lr=0.05), masks]
    standard = Recipe(
        name=f"{name}-standard", data=data, model=ModelSpec(arch=model), stages=learnt, batch=batch, ema=0.99
    )
    hardened = companion_recipe(name, companion, data, epochs=epochs, batch=batch, side=side)
    return {"standard": standard, "companion": hardened}


def image_folder(
    folder: Path,
    *,
    size: int | None = None,
    resize: Resize = Resize(),
    seed: int = 0,
    images_per_class: int | None = None,
    classes: list[str] | None = None,
    seen: bool,
) -> DataSpec:
    """How the image folder is split. `seen`: the network was trained on its training part, if it has one.

    With `classes`, those of the network, the folder may lack some of them, and labels.
    """
    held_out = seen and has_test_part(folder_at(str(folder)))
    fractions = HELD_OUT if held_out else UNSEEN if seen else DataSpec.model_fields["fractions"].default
    return DataSpec(
        source=f"folder:{folder}",
        split_seed=seed,
        fractions=fractions,
        size=size,
        resize=resize,
        images_per_class=images_per_class,
        held_out=held_out,
        test_share=UNSEEN_TEST if seen else TEST_SHARE,
        pool_scarce=seen,
        classes=classes,
    )


def slug(text: str) -> str:
    """`text` as a bundle's name: `torchvision:ResNet18` gives `resnet18`, a file or a folder its own name."""
    text = text.rpartition(":")[2]
    path = Path(text)
    if path.suffix in (".onnx", ".pt2") or path.is_dir():
        text = path.resolve().with_suffix("").name
    name = re.sub(r"[^a-z0-9._-]+", "-", text.lower()).strip("-._")[:64]
    while name.endswith(DRAFT):
        name = name.removesuffix(DRAFT)
    return name or "model"


def _plan(
    name: str, version: str, training: dict[str, Any], resize: Resize, data: Dataset, *, samples: int, alone: bool
) -> Plan:
    small, defaults = data.train.x.shape[1] <= LARGE, default_scores(companion=not alone)
    lacks = {name: why for name in defaults if (why := SCORES[name].lacks(data.train.y, data.select.y))}
    if lacks:
        training = training | {"notes": [f"{name} is left out: {why}" for name, why in lacks.items()]}
    return Plan(
        name=name,
        version=version,
        training=training,
        fused=[name for name in defaults if name not in lacks],
        guard=None if alone else GUARD,
        screened_by=() if alone else SCREENED_BY,
        trusted=TRUSTED,
        policy=Policy(),
        resize=resize,
        buckets=BUCKETS if small else BUCKETS[:4],
        samples=samples,
        effort=Effort(32, 20) if small else Effort(16, 10, places=2, probe_steps=4),
        trial=True,
        left_out=list(lacks),
    )


def _bundled(out: Path, plan: Plan, networks: dict[str, Network], images: Dataset, report: Report) -> Bundle:
    """The bundle in `out`; a run that is stopped, not one that fails, leaves what the next can go on with."""
    kept = out.with_name(out.name + ".kept.part")
    with draft_of(out) as draft:
        try:
            assemble(draft, plan, networks, images, report, kept_in=kept)
        except Exception as error:
            shutil.rmtree(kept, ignore_errors=True)
            if isinstance(error, ExportError):
                raise TrainingError(f"{_archs(plan, networks)}: {error}; {EXPORTABLE}") from None
            if isinstance(error, TrainingError | PalisadeError | OSError):
                raise
            # the user's network runs here and may raise anything
            reason = " ".join(str(error).split())[:300]
            problem = f"{_archs(plan, networks)}: cannot be wrapped: {type(error).__name__}: {reason}; {EXPORTABLE}"
            raise TrainingError(problem) from error
    return load_bundle(out)


def _archs(plan: Plan, networks: dict[str, Network]) -> str:
    return " and ".join(plan.training[role]["model"]["arch"] for role in networks)


def _named(arch: str, version: str) -> ModelSpec:
    """The architecture; it and the version are checked before any long computation."""
    if not re.fullmatch(r"\d+\.\d+\.\d+(-[0-9A-Za-z.-]+)?", version):
        raise TrainingError(f"--version {version}: expected three numbers and a suffix, such as 1.2.0-rc1")
    try:
        return ModelSpec(arch=arch)
    except ValidationError as error:
        raise TrainingError(f"{arch}: {error.errors()[0]['msg'].removeprefix('Value error, ')}") from None
