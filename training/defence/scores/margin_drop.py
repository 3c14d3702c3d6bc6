"""How much of the answer's margin is lost under the reference views."""

from __future__ import annotations

from torch import Tensor

from training.defence.scores.context import Answers
from training.defence.scores.score import AnswerScore
from training.defence.signals.margins import one_hot_margin
from training.defence.signals.views import SHIFTS


class MarginDrop(AnswerScore):
    """Margin of the answer less its mean over the views: feature squeezing (Xu et al. 2018, arXiv 1704.01155).

    The squeezers are shifts: an attack that stops just beyond the boundary loses its label when the image moves.
    """

    name = "margin_drop"
    title = "Margin drop"
    meaning = "How much the answer's lead shrinks when the image is shifted by a pixel."
    needs = frozenset({"views"})

    def __call__(self, context: Answers) -> Tensor:
        views = one_hot_margin(context.view_logits, context.view_labels).reshape(len(SHIFTS), -1)
        return one_hot_margin(context.logits, context.label) - views.mean(0)
