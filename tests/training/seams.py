"""A score and a localiser that exist in tests alone, and lists that have them for a while."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from unittest.mock import patch

import torch
from torch import Tensor

from training.defence.localisers import LOCALISERS
from training.defence.localisers.windows import WindowLocaliser
from training.defence.scores import SCORES
from training.defence.scores.context import BenignFeatures, ScoreContext
from training.defence.scores.score import Score
from training.util.registry import by_name


class FeatureNorm(Score):
    """Squared norm of the last features less its benign mean: a score with a constant of its own."""

    name = "feature_norm"
    title = "Feature norm"
    meaning = "How much stronger features are than those of benign images."
    screens = True
    about_layers = True
    constants = ("mean_norm",)

    def fit(self, benign: BenignFeatures) -> dict[str, Tensor]:
        return {"mean_norm": benign.held_out.pow(2).sum(1).mean()}

    def __call__(self, context: ScoreContext) -> Tensor:
        return context.features.pow(2).sum(1) - context.constants["mean_norm"]


class Brightest(WindowLocaliser):
    """The brightest window."""

    name = "brightest"
    title = "Brightest window"
    meaning = "the brightest window"

    def pixel_map(self, pixels: Tensor) -> Tensor:
        return pixels.mean(1)


@contextmanager
def registered(*more: Score, localisers: Iterable[WindowLocaliser] = ()) -> Iterator[None]:
    """With these at the end of the lists."""
    with (
        patch.dict(SCORES, by_name(*SCORES.values(), *more)),
        patch.dict(LOCALISERS, by_name(*LOCALISERS.values(), *localisers)),
    ):
        yield


@contextmanager
def scores_in_order(scores: Iterable[Score]) -> Iterator[None]:
    """With these scores alone, in this order."""
    with patch.dict(SCORES, by_name(*scores), clear=True):
        yield


def pixels_of(count: int, side: int, seed: int) -> Tensor:
    """Random images (count, 3, side, side)."""
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(seed))
