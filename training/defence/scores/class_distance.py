"""How far an image's features lie from those of the class that it is answered as."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from training.defence.scores.context import BenignFeatures, ScoreContext
from training.defence.scores.score import Score
from training.errors import TrainingError

LEAST_SHRINKAGE = 0.1
SHARE_KNOWN = 0.9


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

        The covariance is that around the training means: training features are tighter than unseen ones. Where images
        are held out and fitted on at once, each is taken around the mean of the others of its class.
        """
        fit, y = benign.fit.double(), benign.fit_y
        count = torch.bincount(y, minlength=benign.classes).to(fit)[:, None]
        sums = torch.zeros(benign.classes, fit.shape[1], dtype=fit.dtype, device=fit.device).index_add_(0, y, fit)
        means = torch.where(count > 0, sums / count.clamp_min(1), fit.mean(0))
        centred = benign.held_out.double() - means[benign.held_out_y]
        if benign.same:
            several = count[y] > 1
            centred = torch.where(several, centred * count[y] / (count[y] - 1).clamp_min(1), fit - fit.mean(0))
        covariance = shrunken_covariance(centred)
        if not covariance.diagonal().mean() > 0:
            raise TrainingError(
                f"the features of the layer {benign.layer!r} are the same for every image; are these weights trained?"
            )
        whiten = torch.linalg.cholesky(torch.linalg.inv(covariance)).T
        return {"whiten": whiten.float(), "class_means": (means @ whiten.T).float()}

    def lacks(self, fit: np.ndarray, held_out: np.ndarray) -> str | None:
        """Nearly every held-out image needs two others of its class that its mean can be taken of."""
        counts = np.bincount(fit if len(fit) else held_out, minlength=int(held_out.max()) + 1)
        known = (counts[held_out] >= (2 if len(fit) else 3)).mean()
        if known >= SHARE_KNOWN:
            return None
        return f"{100 * (1 - known):.0f} % of the select images have fewer than two others of their class for its mean"

    def __call__(self, context: ScoreContext) -> Tensor:
        features = context.features @ context.constants["whiten"].T
        return (features - context.label @ context.constants["class_means"]).pow(2).sum(1)


def shrunken_covariance(centred: Tensor) -> Tensor:
    """Covariance (F, F) of `centred` (N, F), drawn towards its mean variance in every direction.

    By as much as Ledoit and Wolf (2004, "A well-conditioned estimator for large-dimensional covariance matrices", J.
    Multivariate Analysis 88, eq. 14) estimate to be best in the Frobenius norm, and by a tenth at least, so that dead
    neurons leave it invertible. For few images of many features it is near 1. In the type of `centred`.
    """
    n, features = centred.shape
    sample = centred.T @ centred / n
    spread = sample.diagonal().mean()
    target = spread * torch.eye(features, dtype=centred.dtype, device=centred.device)
    distance = (sample - target).pow(2).sum()
    # sum over images of ||x x' - S||^2 is that of ||x||^4 less n ||S||^2
    noise = (centred.pow(2).sum(1).pow(2).sum() / n - sample.pow(2).sum()) / n
    share = (noise / distance).clamp(LEAST_SHRINKAGE, 1.0) if distance > 0 else centred.new_tensor(1.0)
    return (1 - share) * sample + share * target
