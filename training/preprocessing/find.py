"""The preprocessing under which a network answers best: the usual ones, tried on labelled images.

Two stages: which normalisation, at a usual resize rule; then which resize rule and filter, with that normalisation.
Candidates are in order of how common they are, and the first of equally accurate ones is taken. The images must not be
those that accuracy is stated of afterwards.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from gateway.core.preprocessing import Filter, Normalisation, Preprocessing, Resize
from training.data.folders import read_images
from training.errors import PreprocessingError
from training.models.network import Normalise
from training.preprocessing.values import HALF, IMAGENET
from training.preprocessing.words import normalise_in_words, resize_in_words
from training.util.signatures import StepProgress, silent

T = TypeVar("T")

IMAGES = 256
BATCH = 16
CAFFE = [103.939, 116.779, 123.68]  # means of ImageNet's blue, green and red
SHARES = (0.875, 1.0, 0.95)  # of the shorter side that the crop keeps
FILTERS: tuple[Filter, ...] = ("bilinear", "bicubic")


@dataclass(frozen=True)
class Tried:
    """One candidate: its accuracy, and the mean probability of its answers."""

    stage: str
    words: str
    preprocessing: Preprocessing
    accuracy: float
    confidence: float


@dataclass(frozen=True)
class Found:
    """All that was tried, on how many images, and the best."""

    tried: list[Tried]
    n: int
    best: Preprocessing


def normalisations() -> list[Normalisation]:
    """The usual ones, the most common first."""
    bgr: Callable[..., Normalisation] = partial(Normalisation, channel_order="bgr")
    return [
        Normalisation(mean=IMAGENET[0], std=IMAGENET[1]),
        Normalisation(mean=HALF[0], std=HALF[1]),
        Normalisation(),
        Normalisation(scale="byte"),
        bgr(scale="byte", mean=CAFFE),
        bgr(mean=IMAGENET[0][::-1], std=IMAGENET[1][::-1]),
        bgr(mean=HALF[0], std=HALF[1]),
        bgr(),
        bgr(scale="byte"),
        Normalisation(scale="byte", mean=CAFFE[::-1]),
    ]


def rules(side: int) -> list[Resize]:
    """The usual ones for squares of `side`, the most common first."""
    kinds = [Resize(rule="shorter_side", resize_to=int(side / share)) for share in SHARES]
    kinds += [Resize(rule="stretch"), Resize(rule="pad")]
    made = [kind.model_copy(update={"filter": name}) for kind, name in product(kinds, FILTERS)]
    aliased = [kinds[0], kinds[3]]
    return made + [kind.model_copy(update={"filter": "bilinear", "antialias": False}) for kind in aliased]


def find(
    body: nn.Module,
    paths: Sequence[Path],
    labels: np.ndarray,
    *,
    side: int,
    stated: Preprocessing | None = None,
    progress: StepProgress = silent,
) -> Found:
    """The best of the usual preprocessings, and of what is `stated`, for `body` on image files with `labels` (N,).

    `body` takes (N, 3, side, side) as it was trained and answers with logits (N, K). At most `IMAGES` files are used,
    evenly spaced. Raises `PreprocessingError` without labels.
    """
    known = np.flatnonzero(np.asarray(labels) >= 0)
    if not len(known):
        raise PreprocessingError("--preprocessing find needs labelled images: give folders of classes or labels.csv")
    chosen = known[np.unique(np.linspace(0, len(known) - 1, min(len(known), IMAGES)).round().astype(int))]
    files, y = [paths[i] for i in chosen], np.asarray(labels)[chosen]
    known_rules = ([stated.resize] if stated else []) + rules(side)
    known_norms = ([stated.normalise] if stated else []) + normalisations()
    norms, geometries = _distinct(known_norms), _distinct(known_rules)
    total = len(norms) + len(geometries) - 1
    tried: list[Tried] = []

    def attempt(stage: str, x: np.ndarray, resize: Resize, normalise: Normalisation, words: str) -> Tried:
        progress("finding the preprocessing", len(tried), total)
        right, sure = _answers(body, x, y, normalise)
        source = "found on labelled images"
        tried.append(
            Tried(
                stage, words, Preprocessing(side=side, resize=resize, normalise=normalise, source=source), right, sure
            )
        )
        return tried[-1]

    first = geometries[0]
    x = read_images(files, size=side, resize=first)
    best = _first_best(
        [attempt("normalisation", x, first, normalise, normalise_in_words(normalise)) for normalise in norms]
    )
    normalise = best.preprocessing.normalise
    compared = [best] + [
        attempt(
            "resize",
            read_images(files, size=side, resize=resize),
            resize,
            normalise,
            resize_in_words(resize, side),
        )
        for resize in geometries[1:]
    ]
    progress("finding the preprocessing", total, total)
    return Found(tried, len(files), _first_best(compared).preprocessing)


def _answers(body: nn.Module, x: np.ndarray, y: np.ndarray, normalise: Normalisation) -> tuple[float, float]:
    """Share of right answers, and their mean probability whether right or not; those that are no numbers are wrong."""
    mean, std = normalise.of_unit_pixels()
    take = Normalise(mean, std, reverse=normalise.channel_order == "bgr")
    right, sure = 0, 0.0
    with torch.inference_mode():
        for first in range(0, len(x), BATCH):
            pixels = torch.from_numpy(x[first : first + BATCH]).permute(0, 3, 1, 2).float() / 255
            chance: Tensor = body(take(pixels)).softmax(1).nan_to_num(0.0)
            top, answer = chance.max(1)
            right += int(((answer.numpy() == y[first : first + BATCH]) & (top.numpy() > 0)).sum())
            sure += float(top.sum())
    return right / len(x), sure / len(x)


def _first_best(tried: list[Tried]) -> Tried:
    return max(tried, key=lambda each: each.accuracy)  # the first of equal ones


def _distinct(values: list[T]) -> list[T]:
    return [value for i, value in enumerate(values) if value not in values[:i]]
