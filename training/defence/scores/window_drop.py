"""How much of the answer's margin rests on the window that looks most like a patch."""

from __future__ import annotations

from torch import Tensor

from training.defence.scores.context import Answers
from training.defence.scores.score import AnswerScore
from training.defence.signals.margins import one_hot_margin


class WindowDrop(AnswerScore):
    """Margin of the answer less that with the region of attack inpainted (occlusion: Zeiler and Fergus 2014).

    A patch has to carry its label by itself: without it the label is lost.
    """

    name = "window_drop"
    title = "Window drop"
    meaning = "How much the answer's lead shrinks when the window most like a patch is painted over."
    needs = frozenset({"hidden"})
    by_default = False

    def __call__(self, context: Answers) -> Tensor:
        return one_hot_margin(context.logits, context.label) - one_hot_margin(context.hidden_logits, context.label)
