"""How much the neurons of the last tapped layer change under the reference views."""

from __future__ import annotations

from torch import Tensor

from training.defence.scores.context import ScoreContext
from training.defence.scores.score import Score


class NeuronSensitivity(Score):
    """The last layer's deviation (`ScoreContext.deviation`): neuron sensitivity (arXiv 1909.06978), online.

    On attacked images of the select split that layer separated best (docs/methods.md, "Which layers").
    """

    name = "neuron_sensitivity"
    title = "Neuron sensitivity"
    meaning = "How much neurons change under harmless shifts."
    needs = frozenset({"views"})
    about_layers = True

    def __call__(self, context: ScoreContext) -> Tensor:
        return context.deviation[:, -1]
