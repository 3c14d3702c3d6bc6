"""How far an image's features lie from those of the class that it is answered as."""

from __future__ import annotations

import torch
from torch import Tensor

from training.defence.scores.context import BenignFeatures, ScoreContext
from training.defence.scores.score import Score
from training.errors import TrainingError


class ClassDistance(Score):
    """Squared Mahalanobis distance to the served label's class mean (Lee et al. 2018, arXiv 1807.03888).

    `whiten` (F, F): ||whiten (f - mean)|| is the distance; `class_means` (K, F) are whitened already.
    """

    name = "class_distance"
    title = "Class distance"
    meaning = "How far features lie from those of the class that was answered."
    screens = True
    constants = ("whiten", "class_means")

    def fit(self, benign: BenignFeatures) -> dict[str, Tensor]:
        """Class means of training images; covariance of held-out ones; `TrainingError` where all are the same.

        The covariance is that around the training means: training features are tighter than unseen ones. A tenth of it
        is its mean variance in every direction.
        """
        y = benign.fit_y
        means = torch.stack(
            [benign.fit[y == k].mean(0) if (y == k).any() else benign.fit.mean(0) for k in range(benign.classes)]
        )
        centred = benign.held_out - means[benign.held_out_y]
        covariance = centred.T @ centred / len(centred)
        spread = covariance.diagonal().mean()
        if not spread > 0:
            raise TrainingError(
                f"the features of the layer {benign.layer!r} are the same for every image; are these weights trained?"
            )
        covariance = 0.9 * covariance + 0.1 * spread * torch.eye(len(covariance), device=covariance.device)
        whiten = torch.linalg.cholesky(torch.linalg.inv(covariance)).T
        return {"whiten": whiten, "class_means": means @ whiten.T}

    def __call__(self, context: ScoreContext) -> Tensor:
        features = context.features @ context.constants["whiten"].T
        return (features - context.label @ context.constants["class_means"]).pow(2).sum(1)
