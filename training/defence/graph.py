"""The defence graph: prediction, companion, saliency, regions, neutralised pixels and detector scores of a batch.

One module, called by evaluation and attacks as it is and traced to ONNX for serving (`training.export`). It takes
pixels and a mask of what to neutralise first; the gateway calls it with an empty mask, and again with the region of
attack for gated images (docs/architecture.md, "Two calls of one graph").
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from training.defence.constants import Constants, last_tap
from training.defence.localisers import LOCALISER, localiser_named
from training.defence.regions import class_activation_map, gradient_activation_map, region_of_importance
from training.defence.saliency import saliency_map
from training.defence.scores import default_scores, score_named
from training.defence.scores.context import ScoreContext
from training.defence.signals.margins import one_hot_margin, served_one_hot
from training.errors import TrainingError
from training.imaging.inpaint import inpaint
from training.models.network import Network


class DefenceOutputs(NamedTuple):
    """Outputs by image; see docs/architecture.md for shapes. Order is the graph's.

    `screen_scores` are the columns of `scores` that need no view; only the part `screen` gives them out. Without a
    companion there are neither its logits nor a screen.
    """

    logits: Tensor
    companion_logits: Tensor | None
    saliency: Tensor
    roi: Tensor
    roa: Tensor
    roa_score: Tensor
    neutral_pixels: Tensor
    layer_deviation: Tensor
    scores: Tensor
    screen_scores: Tensor | None


class DefenceGraph(nn.Module):
    """Answering network, companion (where there is one) and benign constants as one function of (pixels, mask).

    `scores` are the columns by name, in their order (default: `default_scores`); `localiser` finds the region of
    attack. Raises `TrainingError` for names that do not exist, a score that needs the companion where there is none,
    and a score whose constants are missing.
    """

    change_mean: Tensor
    change_std: Tensor

    def __init__(
        self,
        network: Network,
        companion: Network | None,
        constants: Constants,
        *,
        scores: Sequence[str] | None = None,
        localiser: str = LOCALISER,
    ) -> None:
        super().__init__()
        self.network = network.eval()
        self.companion = None if companion is None else companion.eval()
        self.requires_grad_(False)
        names = default_scores(companion=companion is not None) if scores is None else scores
        self.scores = [score_named(name) for name in names]
        self.localiser = localiser_named(localiser)
        for name, tensor in constants.tensors().items():
            self.register_buffer(name, tensor)
        self._fitted = tuple(constants.fitted)
        self.layers = list(network.tap_channels)
        for score in self.scores:
            if companion is None and "companion" in score.needs:
                raise TrainingError(f"the score {score.name!r} needs a companion, which this defence lacks")
            if missing := sorted(set(score.constants) - set(self._fitted)):
                raise TrainingError(f"the score {score.name!r} needs the constant {missing[0]!r}, which was not fitted")

    @property
    def constants(self) -> Constants:
        """The benign constants, where the graph's tensors are."""
        fitted = {name: self.get_buffer(name) for name in self._fitted}
        return Constants(self.change_mean, self.change_std, fitted)

    @property
    def score_names(self) -> tuple[str, ...]:
        """Names of the columns of `scores`."""
        return tuple(score.name for score in self.scores)

    @property
    def screen_names(self) -> tuple[str, ...]:
        """Names of the columns of `screen_scores`; none without a companion, which has no screen."""
        return () if self.companion is None else tuple(score.name for score in self.scores if score.screens)

    def forward(self, pixels: Tensor, mask: Tensor) -> DefenceOutputs:
        """pixels (N, C, H, W) in [0, 1], mask (N, H, W) in {0, 1}; everything is computed on the inpainted pixels."""
        x = inpaint(pixels, mask)
        with torch.enable_grad():
            leaf = x.detach().requires_grad_(True)
            logits, taps = self.network.taps(leaf)
            label = served_one_hot(logits.detach())
            at = [leaf, taps[self.layers[-1]]] if self.companion is None else [leaf]
            gradient, *own = torch.autograd.grad(one_hot_margin(logits, label).sum(), at)
        logits, taps = logits.detach(), {name: tap.detach() for name, tap in taps.items()}
        size = (x.shape[2], x.shape[3])
        if self.companion is None:
            companion_logits = None
            cam = gradient_activation_map(taps[self.layers[-1]], own[0], size)
        else:
            companion_logits, cam = companion_map(self.companion, x, label)
        context = self.context(x, logits, taps, companion_logits)
        roa, roa_score = context.region
        by_name = {score.name: score(context) for score in self.scores}
        screen = [by_name[name] for name in self.screen_names]
        return DefenceOutputs(
            logits,
            companion_logits,
            saliency_map(x, gradient),
            region_of_importance(cam),
            roa,
            roa_score,
            x,
            context.deviation,
            torch.stack(list(by_name.values()), 1),
            torch.stack(screen, 1) if screen else None,
        )

    def context(
        self, x: Tensor, logits: Tensor, taps: dict[str, Tensor], companion_logits: Tensor | None
    ) -> ScoreContext:
        """What scores read of pixels x (N, C, H, W) with these outputs of the networks."""
        return ScoreContext(
            network=self.network,
            companion=self.companion,
            x=x,
            logits=logits,
            taps=taps,
            companion_logits=companion_logits,
            change_mean=self.change_mean,
            change_std=self.change_std,
            constants=self.constants.fitted,
            localiser=self.localiser,
        )

    def detector_scores(
        self, x: Tensor, logits: Tensor, taps: dict[str, Tensor], companion_logits: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """`score_names` (N, S), larger is more anomalous, and deviation by layer (N, L); attacks differentiate both.

        Without the companion's logits what needs them is not computed: its columns are NaN, and all others keep their
        places.
        """
        context = self.context(x, logits, taps, companion_logits)
        unknown = logits.new_full((len(logits),), torch.nan)
        columns = [
            unknown if companion_logits is None and "companion" in score.needs else score(context)
            for score in self.scores
        ]
        return torch.stack(columns, 1), context.deviation


def companion_map(companion: Network, x: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
    """Logits (N, K) of the companion and its activation map (N, H, W) for the one-hot `label` (N, K).

    In closed form where its head is linear in spatial means; else by the gradient at its last tapped layer.
    """
    size = (x.shape[2], x.shape[3])
    head = companion.pooled_head
    if head is not None:
        logits, taps = companion.taps(x)
        return logits, class_activation_map(taps[last_tap(companion)], head, label, size)
    with torch.enable_grad():
        logits, taps = companion.taps(x.detach().requires_grad_(True))
        features = taps[last_tap(companion)]
        (gradient,) = torch.autograd.grad((logits * label).sum(), features)
    return logits.detach(), gradient_activation_map(features.detach(), gradient, size)
