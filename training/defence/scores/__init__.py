"""Detector scores, one file each: the list of them, and which of them a defence has (CONTRIBUTING.md)."""

from __future__ import annotations

from collections.abc import Iterable

from training.defence.scores.class_distance import ClassDistance
from training.defence.scores.companion_margin import CompanionMargin
from training.defence.scores.companion_strict import CompanionStrict
from training.defence.scores.filter_drop import FilterDrop
from training.defence.scores.margin_drop import MarginDrop
from training.defence.scores.neuron_sensitivity import NeuronSensitivity
from training.defence.scores.score import AnswerScore, Score
from training.defence.scores.window_drop import WindowDrop
from training.errors import TrainingError
from training.util.registry import by_name

SCORES: dict[str, Score] = by_name(
    MarginDrop(),
    FilterDrop(),
    WindowDrop(),
    NeuronSensitivity(),
    ClassDistance(),
    CompanionMargin(),
    CompanionStrict(),
)
"""Every score by name. A new defence has its columns in this order; one that was built keeps its manifest's."""


def score_named(name: str) -> Score:
    """The score `name`; `TrainingError` if there is none."""
    if name not in SCORES:
        raise TrainingError(f"there is no score {name!r}; there are {', '.join(SCORES)}")
    return SCORES[name]


def default_scores(*, companion: bool) -> tuple[str, ...]:
    """What is computed and fused where a recipe names no scores."""
    return tuple(score.name for score in SCORES.values() if score.by_default and _possible(score, companion=companion))


def chosen(asked: Iterable[str], *, companion: bool) -> tuple[str, ...]:
    """The columns of a new defence: the default scores and those `asked` for, by name.

    `TrainingError` for one that does not exist, or that needs the companion where there is none.
    """
    wanted = {score_named(name).name for name in asked}
    if lost := sorted(name for name in wanted if not _possible(SCORES[name], companion=companion)):
        raise TrainingError(f"the score {lost[0]!r} needs a companion, which this defence lacks")
    wanted |= set(default_scores(companion=companion))
    return tuple(name for name in SCORES if name in wanted)


def screening() -> tuple[str, ...]:
    """Those that a screen computes."""
    return tuple(score.name for score in SCORES.values() if score.screens)


def of_answers() -> tuple[AnswerScore, ...]:
    """Those that can be computed for a network that another server runs."""
    return tuple(score for score in SCORES.values() if isinstance(score, AnswerScore))


def _possible(score: Score, *, companion: bool) -> bool:
    return companion or "companion" not in score.needs
