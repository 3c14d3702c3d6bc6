"""A detector score: one number an image, larger is more anomalous, and what must be known of it elsewhere."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar, Literal

import numpy as np
from torch import Tensor

from training.defence.scores.context import Answers, BenignFeatures, ScoreContext

Need = Literal["views", "filtered", "hidden", "companion", "gradient"]


class Score(ABC):
    """A score of one file of this folder; graph, manifest, calibration, attacks, card and console read what it states.

    `name` is the column's in the manifest; `title` and `meaning` (a sentence) are what people read in its place.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    meaning: ClassVar[str]

    needs: ClassVar[frozenset[Need]] = frozenset()
    """Beside the answering network's first look: its answers to the reference `views`, to the `filtered` image, and to
    the image with its most suspicious window `hidden`; the `companion`, without which the score is left out; an input
    `gradient` of its own."""

    screens: ClassVar[bool] = False
    """Whether the cascade's screen computes it, too: it must be cheap and read no view."""

    by_default: ClassVar[bool] = True
    """Whether a bundle has it and fuses it where its recipe does not state otherwise; else only where it is named."""

    about_layers: ClassVar[bool] = False
    """Whether it is a statement about layers, so that its evidence names the one that deviates most."""

    of_any_label: ClassVar[bool] = False
    """Whether it is minus the companion's margin of the label: an attacker can ask that of a label before it is the
    answer. Any other score is only known of what is answered."""

    system: ClassVar[str | None] = None
    """The card's name of the system that is this score alone; None: it is not judged alone."""

    constants: ClassVar[tuple[str, ...]] = ()
    """Names of the tensors that `fit` returns, in `networks.safetensors` below `constants/`."""

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if cls.screens and {"views", "filtered", "hidden"} & cls.needs:
            raise TypeError(f"{cls.__name__}: a screen reads no views")

    def fit(self, benign: BenignFeatures) -> dict[str, Tensor]:  # noqa: ARG002  # most scores fit nothing
        """The score's constants by name (`constants`)."""
        return {}

    def lacks(self, fit: np.ndarray, held_out: np.ndarray) -> str | None:  # noqa: ARG002
        """Why the score's constants cannot be fitted on images of these labels, (N,) and (M,) as `fit` has them."""
        return None

    @abstractmethod
    def __call__(self, context: ScoreContext) -> Tensor:
        """The score (N,) in operators that trace to plain ONNX (docs/architecture.md, "Defence graph")."""


class AnswerScore(Score):
    """A score of the network's answers alone: it can be computed for a network that another server runs."""

    @abstractmethod
    def __call__(self, context: Answers) -> Tensor:
        """The score (N,)."""
