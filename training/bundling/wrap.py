"""Bundles of networks that users bring: wrapped as they are, or trained on their images.

`wrap` calibrates and exports a trained network and changes no weight; `harden` trains an answering network of a named
architecture and a companion, with recipes that are a place to start from.
"""

from __future__ import annotations

import re
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from gateway.core.loading import Bundle, load_bundle
from gateway.core.manifest import BUCKETS, Policy, Resize
from gateway.errors import PalisadeError
from training.bundling.assemble import Plan, Report, Silent, assemble, check_free
from training.bundling.calibrate import GUARD, SCREENED_BY, enough_to_calibrate
from training.bundling.networks import ROLES
from training.bundling.provenance import Wrapped, load_data
from training.data.dataset import Dataset, folder_at
from training.data.folders import classes_of, has_test_part, list_files
from training.defence.constants import batch_of
from training.defence.scores import default_scores
from training.errors import ExportError, TrainingError
from training.loop.runs import load_run
from training.loop.train import settled_all, train
from training.loop.trainer import accuracy
from training.models import ModelSpec
from training.models.forms import keep, open_model
from training.models.forms.opened import AS_IT_IS, IMAGENET, Normalisation, OpenedModel
from training.models.layers import answers
from training.models.named import with_taps
from training.models.network import Network
from training.recipes.evaluation import Evaluation
from training.recipes.training import Adversary, DataSpec, MaskAugmentation, Recipe, Stage
from training.util.atomic import draft_of

# Of the test part where there is one: the network has seen the training part. Order: test, select, calibrate.
HELD_OUT = (0.2, 0.3, 0.5)
# Of what is left of a folder of classes alone when a fifth is its test part: train (class means), select, calibrate.
UNSEEN = (0.3, 0.25, 0.45)
EXPORTABLE = "write that part of the network in operators that ONNX has, with sizes that do not depend on values"
LARGE = 96  # images of more pixels a side are served in smaller batches


def wrap(
    model: str,
    weights: Path | None,
    data: DataSpec,
    out: Path,
    *,
    normalise: str | None = None,
    labels: Path | None = None,
    version: str = "1.0.0",
    companion: Path | None = None,
    samples: int = 2,
    force: bool = False,
    report: Report | None = None,
) -> tuple[Bundle, Dataset, float]:
    """The bundle in `out` of the network `model` as it is, its data, and its accuracy on `select`.

    `model` is of any form in `training.models.forms`. `normalise` (`normalisation`) is for pixels of [0, 1], by default
    what the file states. `companion` is the folder of a run trained on the same data
    and splits. Raises `TrainingError`; `out` is replaced only by a finished bundle, and only if `force`.
    """
    report = report or Silent()
    check_free(out, force=force)
    _named(model, version)
    classes = _count_classes(folder_at(data.source.removeprefix("folder:")))  # before images are read
    side = data.size or 32
    opened = open_model(model, weights=weights, classes=classes, labels=labels, side=side)
    network = _network(opened, classes, normalise, side)
    settings = Wrapped(name=slug(out.name), wrapped=opened.digest, data=data, model=ModelSpec(arch=opened.arch))
    images = load_data(settings, report.step)
    networks: dict[str, Network] = {"standard": network.eval()}
    training = {"standard": settings.model_dump(mode="json"), "evaluation": Evaluation().model_dump(mode="json")}
    if companion is not None:
        recipe, networks["companion"] = load_run(companion, images)
        training["companion"] = recipe.model_dump(mode="json")
    right = accuracy(network, images.select, batch=batch_of(*images.select.x.shape[1:3]))
    plan = _plan(slug(out.name), version, training, data.resize, images, samples=samples, alone=companion is None)
    plan = replace(plan, keep=partial(keep, opened))
    return _bundled(out, plan, networks, images, report), images, right


def _network(opened: OpenedModel, classes: int, normalise: str | None, side: int) -> Network:
    """The opened network with its layers tapped; `TrainingError` if it does not answer with `classes` logits."""
    if opened.side is not None and opened.side != side:
        raise TrainingError(f"{opened.name} takes images of {opened.side} pixels, not of {side}: --size {opened.side}")
    mean, std = normalisation(normalise, opened.normalise)
    logits = answers(opened.body, channels=len(mean), side=side)
    if logits != classes:
        raise TrainingError(f"{opened.name} answers with {logits} classes, the data have {classes}")
    return with_taps(opened.body, classes=classes, mean=mean, std=std, side=side)


def harden(
    model: str,
    data: DataSpec,
    out: Path,
    *,
    runs: Path,
    epochs: int = 30,
    companion: str = "small_resnet",
    batch: int = 64,
    version: str = "1.0.0",
    samples: int = 2,
    force: bool = False,
    report: Report | None = None,
) -> tuple[Bundle, Dataset]:
    """Train `model` and a companion on `data`, each for `epochs` epochs, and put their bundle into `out`."""
    report = report or Silent()
    check_free(out, force=force)
    name = slug(out.name)
    _named(model, version)
    _named(companion, version)
    recipes = recipes_for(name, model, companion, data, epochs=epochs, batch=batch)
    recipes = settled_all(recipes, runs)
    images = load_data(recipes["standard"], report.step)
    enough_to_calibrate(images)
    networks = {role: train(recipes[role], images, runs=runs, report=report.training) for role in ROLES}
    training = {role: recipe.model_dump(mode="json") for role, recipe in recipes.items()}
    training |= {"evaluation": Evaluation().model_dump(mode="json")}
    plan = _plan(name, version, training, data.resize, images, samples=samples, alone=False)
    return _bundled(out, plan, networks, images, report), images


def recipes_for(name: str, model: str, companion: str, data: DataSpec, *, epochs: int, batch: int) -> dict[str, Recipe]:
    """Recipes of the answering network (then mask augmentation) and of its companion (adversarial)."""
    late = max(1, epochs // 4)
    masks = Stage(name="mask", epochs=late, lr=0.02, mask_augmentation=MaskAugmentation())
    learnt = [Stage(name="standard", epochs=max(1, epochs - late), lr=0.05), masks]
    adversary = Adversary(eps=8, steps=3, clean_weight=1.0)
    settle = Stage(name="settle", epochs=late, lr=0.01, adversary=adversary)
    hardened = [Stage(name="adversarial", epochs=max(1, epochs - late), lr=0.05, adversary=adversary), settle]
    networks = {"standard": ModelSpec(arch=model), "companion": _companion(companion, data.size or 32)}
    return {
        role: Recipe(name=f"{name}-{role}", data=data, model=networks[role], stages=stages, batch=batch, ema=0.99)
        for role, stages in (("standard", learnt), ("companion", hardened))
    }


def _companion(arch: str, side: int) -> ModelSpec:
    """The small residual network sees images of about 32 pixels a side after its stem, whatever they are before."""
    if arch != "small_resnet":
        return ModelSpec(arch=arch)
    if side <= 48:
        return ModelSpec()
    return ModelSpec(blocks=(1, 1, 1, 1), stem_stride=2 if side <= LARGE else 4)


def image_folder(
    folder: Path, *, size: int, resize: Resize, seed: int = 0, images_per_class: int | None = None, seen: bool
) -> DataSpec:
    """How the image folder is split. `seen`: the network was trained on its training part, if it has one."""
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
    )


def normalisation(text: str | None, stated: Normalisation | None) -> Normalisation:
    """Mean and deviation of `imagenet`, `none` or `m,m,m/s,s,s`; the default is what the network's file states."""
    if text is None:
        return stated or AS_IT_IS
    if text in ("imagenet", "none"):
        return IMAGENET if text == "imagenet" else AS_IT_IS
    try:
        mean, std = ([float(number) for number in part.split(",")] for part in text.split("/"))
    except ValueError:
        mean, std = [], []
    if len(mean) != 3 or len(std) != 3 or min(std) <= 0:
        raise TrainingError(f"--normalise {text}: expected imagenet, none, or three means and deviations: m,m,m/s,s,s")
    return mean, std


def slug(text: str) -> str:
    """`text` as a bundle's name: `torchvision:ResNet18` gives `resnet18`, a file or a folder its own name."""
    text = text.rpartition(":")[2]
    path = Path(text)
    if path.suffix in (".onnx", ".pt2") or path.is_dir():
        text = path.resolve().with_suffix("").name
    return re.sub(r"[^a-z0-9._-]+", "-", text.lower()).strip("-._")[:64] or "model"


def _plan(
    name: str, version: str, training: dict[str, Any], resize: Resize, data: Dataset, *, samples: int, alone: bool
) -> Plan:
    small = data.train.x.shape[1] <= LARGE
    return Plan(
        name=name,
        version=version,
        training=training,
        fused=default_scores(companion=not alone),
        guard=None if alone else GUARD,
        screened_by=() if alone else SCREENED_BY,
        policy=Policy(),
        resize=resize,
        buckets=BUCKETS if small else BUCKETS[:4],
        samples=samples,
        tried=(8 if small else 4) * samples,
        steps=20,
    )


def _bundled(out: Path, plan: Plan, networks: dict[str, Network], images: Dataset, report: Report) -> Bundle:
    with draft_of(out) as draft:
        try:
            assemble(draft, plan, networks, images, report)
        except ExportError as error:
            raise TrainingError(f"{_archs(plan, networks)}: {error}; {EXPORTABLE}") from None
        except (TrainingError, PalisadeError, OSError):
            raise
        except Exception as error:  # the user's network runs here and may raise anything
            reason = " ".join(str(error).split())[:300]
            problem = f"{_archs(plan, networks)}: cannot be wrapped: {type(error).__name__}: {reason}; {EXPORTABLE}"
            raise TrainingError(problem) from error
    return load_bundle(out)


def _archs(plan: Plan, networks: dict[str, Network]) -> str:
    return " and ".join(plan.training[role]["model"]["arch"] for role in networks)


def _count_classes(root: Path) -> int:
    """How many classes an image folder has, each of them with images."""
    names = classes_of(root)
    for part in [root / "train", root / "test"] if has_test_part(root) else [root]:
        list_files(part, names)
    return len(names)


def _named(arch: str, version: str) -> ModelSpec:
    """The architecture; it and the version are checked before any long computation."""
    if not re.fullmatch(r"\d+\.\d+\.\d+(-[0-9A-Za-z.-]+)?", version):
        raise TrainingError(f"--version {version}: expected three numbers and a suffix, such as 1.2.0-rc1")
    try:
        return ModelSpec(arch=arch)
    except ValidationError as error:
        raise TrainingError(f"{arch}: {error.errors()[0]['msg'].removeprefix('Value error, ')}") from None
