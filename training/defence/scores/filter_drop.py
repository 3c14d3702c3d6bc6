"""How much of the answer's margin is lost under a median filter."""

from __future__ import annotations

from torch import Tensor

from training.defence.scores.context import Answers
from training.defence.scores.score import AnswerScore
from training.defence.signals.margins import one_hot_margin


class FilterDrop(AnswerScore):
    """Margin of the answer less that under a 3 x 3 median: feature squeezing (Xu et al. 2018, arXiv 1704.01155)."""

    name = "filter_drop"
    title = "Filter drop"
    meaning = "How much the answer's lead shrinks when the image is smoothed."
    needs = frozenset({"filtered"})
    by_default = False

    def __call__(self, context: Answers) -> Tensor:
        return one_hot_margin(context.logits, context.label) - one_hot_margin(context.filtered_logits, context.label)
