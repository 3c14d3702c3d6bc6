"""The network that a user names, of whatever form, behind its normalisation and with its layers tapped."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from gateway.core.preprocessing import Preprocessing
from training.data.dataset import folder_at
from training.data.layouts import classes_of, names_classes
from training.errors import DataError, TrainingError
from training.models import ARCHS, ModelSpec, build_model
from training.models.forms import open_model
from training.models.forms.labels import read_labels
from training.models.forms.opened import OpenedModel, digest_of
from training.models.forms.weights import fill
from training.models.named import with_taps
from training.models.network import Network
from training.models.probe import answers
from training.recipes.training import DataSpec


def open_named(model: str, *, weights: Path | None, labels: Path | None, data: DataSpec, side: int) -> OpenedModel:
    """The network `model`: an architecture of ours, or of any form in `training.models.forms`.

    The number of its classes, where its form leaves that open, is that of `labels`, else of the folder of `data`; the
    side of its images is then `side`. Where neither the file nor the folder names classes they are named by their
    numbers. Raises `TrainingError`.
    """
    names = None if labels is None else read_labels(labels)
    count = _classes_of_folder(data) if names is None else len(names)
    if model not in ARCHS:
        opened = open_model(model, weights=weights, classes=count, labels=labels, side=side)
        root = folder_at(data.source.removeprefix("folder:"))
        if opened.classes is None and root.is_dir() and not names_classes(root):
            logits = answers(opened.body, channels=3, side=opened.side or side)
            return replace(opened, classes=[str(index) for index in range(logits)])
        return opened
    if weights is None:
        raise TrainingError(f"{model} names an architecture; pass its weights: --weights FILE.safetensors")
    if not weights.is_file():
        raise TrainingError(f"{weights}: no such file")
    if count is None:
        raise TrainingError(f"{model}: how many classes has it? Name them: --labels FILE")
    body = build_model(ModelSpec(arch=model), classes=count, mean=[0.0] * 3, std=[1.0] * 3, side=side)
    return OpenedModel(body, model, model, digest=digest_of([weights]), classes=names)


def network_of(opened: OpenedModel, weights: Path | None, *, classes: int, found: Preprocessing) -> Network:
    """The opened network with its layers tapped, behind the normalisation that was found.

    `TrainingError` if it does not answer with `classes` logits, or does not take images of that side.
    """
    side = found.side
    assert side is not None
    if opened.side is not None and opened.side != side:
        raise TrainingError(f"{opened.name} takes images of {opened.side} pixels, not of {side}: --size {opened.side}")
    mean, std = found.normalise.of_unit_pixels()
    if opened.arch in ARCHS:
        network = build_model(ModelSpec(arch=opened.arch), classes=classes, mean=mean, std=std, side=side)
        assert weights is not None  # `open_named` has asked for them
        fill(network, weights, classes=classes)  # the normalisation is in the file
        return network
    logits = answers(opened.body, channels=len(mean), side=side)
    if logits != classes:
        raise TrainingError(f"{opened.name} answers with {logits} classes, the data have {classes}")
    reverse = found.normalise.channel_order == "bgr"
    return with_taps(opened.body, classes=classes, mean=mean, std=std, side=side, reverse=reverse)


def _classes_of_folder(data: DataSpec) -> int | None:
    """How many classes the folder of `data` states; None if it states none."""
    try:
        return len(classes_of(folder_at(data.source.removeprefix("folder:"))))
    except DataError:
        return None
