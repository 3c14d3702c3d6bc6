"""The defence graph: prediction, companion, saliency, regions, neutralised pixels and detector scores of a batch.

One module, called by evaluation and attacks as it is and traced to ONNX for serving (`training.export`). It takes
pixels and a mask of what to neutralise first; the gateway calls it with an empty mask, and again with the region of
attack for gated images (docs/architecture.md, "Two calls of one graph").
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from training.defence.constants import Constants, last_tap
from training.defence.deviation import normalised, top_mean, view_change
from training.defence.margins import one_hot_margin, served_one_hot
from training.defence.regions import (
    class_activation_map,
    gradient_activation_map,
    region_of_attack,
    region_of_importance,
)
from training.defence.saliency import saliency_map
from training.defence.strict import strict_margin
from training.defence.views import SHIFTS, reference_views
from training.imaging.inpaint import inpaint
from training.models.network import Network

SCORES = ("margin_drop", "neuron_sensitivity", "class_distance", "companion_margin")
SCREEN_SCORES = ("class_distance", "companion_margin")  # those that need no view
ALONE_SCORES = SCORES[:-1]  # those of a network without a companion, which has no screen
STRICT = "companion_strict"  # costs two input gradients of the companion: only where it is asked for


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
    """Answering network, companion (where there is one) and benign constants as one function of (pixels, mask)."""

    change_mean: Tensor
    change_std: Tensor
    whiten: Tensor
    class_means: Tensor

    def __init__(
        self, network: Network, companion: Network | None, constants: Constants, *, strict: bool = False
    ) -> None:
        super().__init__()
        self.network = network.eval()
        self.companion = None if companion is None else companion.eval()
        self.strict = strict and companion is not None
        self.requires_grad_(False)
        for name, tensor in constants.tensors().items():
            self.register_buffer(name, tensor)
        self.layers = list(network.tap_channels)

    @property
    def score_names(self) -> tuple[str, ...]:
        """Names of the columns of `scores`."""
        if self.companion is None:
            return ALONE_SCORES
        return (*SCORES, STRICT) if self.strict else SCORES

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
            companion_logits = screen = None
            cam = gradient_activation_map(taps[self.layers[-1]], own[0], size)
        else:
            companion_logits, cam = companion_map(self.companion, x, label)
            screen = self.screen_scores(logits, taps, companion_logits)
        roa, roa_score = region_of_attack(x)
        scores, layer_deviation = self.detector_scores(x, logits, taps, companion_logits)
        return DefenceOutputs(
            logits,
            companion_logits,
            saliency_map(x, gradient),
            region_of_importance(cam),
            roa,
            roa_score,
            x,
            layer_deviation,
            scores,
            screen,
        )

    def detector_scores(
        self, x: Tensor, logits: Tensor, taps: dict[str, Tensor], companion_logits: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """`score_names` (N, S), larger is more anomalous, and deviation by layer (N, L); attacks differentiate both.

        Without the companion's logits they are `ALONE_SCORES`.

        The neuron-sensitivity score is the last layer's deviation: on attacked images of the select split it separated
        best (docs/methods.md, "Which layers").
        """
        label = served_one_hot(logits.detach())
        view_logits, view_taps = self.network.taps(reference_views(x))
        view_margin = one_hot_margin(view_logits, label.repeat(len(SHIFTS), 1)).reshape(len(SHIFTS), -1)
        margin_drop = one_hot_margin(logits, label) - view_margin.mean(0)
        change = torch.cat([view_change(taps[name], view_taps[name]) for name in self.layers], 1)
        z = normalised(change, self.change_mean, self.change_std)
        parts = z.split([taps[name].shape[1] for name in self.layers], 1)
        deviation = torch.stack([top_mean(part) for part in parts], 1)
        from_views = torch.stack([margin_drop, deviation[:, -1]], 1)
        scores = [from_views, self.screen_scores(logits, taps, companion_logits)]
        if self.strict and companion_logits is not None:
            scores.append(self.strict_score(x, logits)[:, None])
        return torch.cat(scores, 1), deviation

    def strict_score(self, x: Tensor, logits: Tensor) -> Tensor:
        """The companion's doubt (N,) of the served label after a short attack by ourselves (`strict_margin`)."""
        assert self.companion is not None
        return -strict_margin(self.companion, x, served_one_hot(logits.detach()))

    def screen_scores(self, logits: Tensor, taps: dict[str, Tensor], companion_logits: Tensor | None) -> Tensor:
        """`SCREEN_SCORES` (N, 2): distance to the served label's class mean, and the companion's doubt of the label.

        Without a companion the distance alone, (N, 1).
        """
        label = served_one_hot(logits.detach())
        features = taps[self.layers[-1]].mean((2, 3)) @ self.whiten.T
        distance = (features - label @ self.class_means).pow(2).sum(1)
        doubt = [] if companion_logits is None else [-one_hot_margin(companion_logits, label)]
        return torch.stack([distance, *doubt], 1)


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
