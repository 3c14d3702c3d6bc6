"""What the defence graph knows of benign images: normalisers and class-conditional feature statistics."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from training.data.dataset import Split
from training.defence.deviation import view_change
from training.defence.views import reference_views
from training.errors import TrainingError
from training.imaging.pixels import to_tensor
from training.losses.sns import neuron_sensitivity, select_sensitive
from training.models.network import Network
from training.util.module_modes import frozen


@dataclass(frozen=True)
class Constants:
    """Benign statistics; C is the number of neurons of all tapped layers together, F of the last one, K of classes."""

    change_mean: Tensor  # (C,) benign mean of `view_change`
    change_std: Tensor  # (C,)
    whiten: Tensor  # (F, F): ||whiten (f - mean)|| is the Mahalanobis distance
    class_means: Tensor  # (K, F), already whitened

    def tensors(self) -> dict[str, Tensor]:
        return {field.name: getattr(self, field.name) for field in fields(self)}


@torch.no_grad()
def fit_constants(network: Network, fit: Split, benign: Split, *, classes: int) -> Constants:
    """Class means and covariance from `fit` (training images), normalisers from `benign` (the select split).

    Means fitted on training images and normalisers on others keep the scores of the calibrate split exchangeable with
    test scores: nothing here has seen the calibrate split.
    """
    with frozen(network):
        features = torch.cat([network.taps(x)[1][last_tap(network)].mean((2, 3)) for x in _batches(network, fit)])
        held_out, changes = [], []
        for x in _batches(network, benign):
            taps, views = network.taps(x)[1], network.taps(reference_views(x))[1]
            held_out.append(taps[last_tap(network)].mean((2, 3)))
            changes.append(torch.cat([view_change(taps[name], views[name]) for name in taps], 1))
    y = torch.from_numpy(fit.y).to(features.device)
    means = torch.stack([features[y == k].mean(0) if (y == k).any() else features.mean(0) for k in range(classes)])
    # Covariance of held-out images around the training means: training features are tighter than unseen ones.
    centred = torch.cat(held_out) - means[torch.from_numpy(benign.y).to(means.device)]
    covariance = centred.T @ centred / len(centred)
    spread = covariance.diagonal().mean()
    if not spread > 0:
        raise TrainingError(
            f"the features of the layer {last_tap(network)!r} are the same for every image; are these weights trained?"
        )
    covariance = 0.9 * covariance + 0.1 * spread * torch.eye(len(covariance), device=covariance.device)
    whiten = torch.linalg.cholesky(torch.linalg.inv(covariance)).T
    change = torch.cat(changes)
    return Constants(
        change_mean=change.mean(0),
        change_std=change.std(0).clamp_min(1e-6),
        whiten=whiten,
        class_means=means @ whiten.T,
    )


def sensitive_neurons(network: Network, x: Tensor, adversarial: Tensor, *, share: float = 0.1) -> dict[str, list[int]]:
    """The most sensitive neurons of each tapped layer from pairs (N, C, H, W), for the manifest."""
    with frozen(network), torch.no_grad():
        sensitivity = neuron_sensitivity(network.taps(x)[1], network.taps(adversarial)[1], relative=True)
    return {name: index.tolist() for name, index in select_sensitive(sensitivity, share=share).items()}


def last_tap(network: Network) -> str:
    return list(network.tap_channels)[-1]


def middle_tap(network: Network) -> str:
    """The tapped layer in the middle of the network."""
    names = list(network.tap_channels)
    return names[len(names) // 2]


def batch_of(height: int, width: int) -> int:
    """Images that go through a network at once: 256 of 32 x 32, fewer of larger ones."""
    return max(1, min(256, 256 * 32 * 32 // (height * width)))


def _batches(network: Network, split: Split) -> Iterator[Tensor]:
    size, parameter = batch_of(*split.x.shape[1:3]), next(network.parameters())
    for i in range(0, len(split), size):
        yield to_tensor(split.x[i : i + size]).to(parameter.device)
