"""How much the companion doubts the answer."""

from __future__ import annotations

from torch import Tensor

from training.defence.scores.context import ScoreContext
from training.defence.scores.score import Score
from training.defence.signals.margins import one_hot_margin


class CompanionMargin(Score):
    """Minus the companion's margin of the served label: whatever does not carry over to a robust network."""

    name = "companion_margin"
    title = "Companion's margin"
    meaning = "How much the adversarially trained companion objects to the answer."
    needs = frozenset({"companion"})
    screens = True
    of_any_label = True
    system = "companion"

    def __call__(self, context: ScoreContext) -> Tensor:
        assert context.companion_logits is not None
        return -one_hot_margin(context.companion_logits, context.label)
