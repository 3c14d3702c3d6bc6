"""Constants of the defence graph from benign images: normalisers of neurons, and what each score fits."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from training.data.dataset import Split
from training.defence.scores import SCORES, score_named
from training.defence.scores.context import BenignFeatures
from training.defence.signals.deviation import view_change
from training.defence.signals.views import reference_views
from training.imaging.pixels import to_tensor
from training.losses.sns import neuron_sensitivity, select_sensitive
from training.models.network import Network
from training.util.module_modes import frozen
from training.util.signatures import Progress, silent


@dataclass(frozen=True)
class Constants:
    """Benign statistics; C is the number of neurons of all tapped layers together."""

    change_mean: Tensor  # (C,) benign mean of `view_change`
    change_std: Tensor  # (C,)
    fitted: Mapping[str, Tensor] = field(default_factory=dict)  # of scores, by the names they state

    def tensors(self) -> dict[str, Tensor]:
        """All of them by name, as a bundle's file holds them."""
        return {"change_mean": self.change_mean, "change_std": self.change_std, **self.fitted}

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor]) -> Constants:
        """The constants that are `tensors` by name; `KeyError` where a normaliser is missing."""
        fitted = {name: tensor for name, tensor in tensors.items() if name not in ("change_mean", "change_std")}
        return cls(tensors["change_mean"], tensors["change_std"], fitted)


class _Moments:
    """Mean and deviation (C,) of rows that come in batches, in float64 (Chan et al. 1983, "Algorithms for computing the
    sample variance"): all rows of many images would not fit into memory.
    """

    def __init__(self) -> None:
        self.n, self.mean, self._squares = 0, torch.zeros(()), torch.zeros(())

    def add(self, rows: Tensor) -> None:
        """Take rows (N, C) into account."""
        rows, m, n = rows.double(), len(rows), self.n + len(rows)
        mean = rows.mean(0)
        off = mean - self.mean
        self._squares = self._squares + (rows - mean).pow(2).sum(0) + off.pow(2) * self.n * m / n
        self.mean, self.n = self.mean + off * m / n, n

    def std(self) -> Tensor:
        """The unbiased one."""
        return (self._squares / max(self.n - 1, 1)).sqrt()


@torch.no_grad()
def fit_constants(
    network: Network,
    fit: Split,
    benign: Split,
    *,
    classes: int,
    scores: Iterable[str] | None = None,
    progress: Progress = silent,
) -> Constants:
    """Normalisers from `benign` (the select split), and what `scores` (default: all) fit on it and on `fit`.

    `fit` are training images; where there are none, scores fit on `benign` alone. Means fitted on training images and
    normalisers on others keep the scores of the calibrate split exchangeable with test scores: nothing here has seen
    the calibrate split.
    """
    with frozen(network):
        features = [network.taps(x)[1][last_tap(network)].mean((2, 3)) for x in _batches(network, fit)]
        held_out, changes = [], _Moments()
        for x in _batches(network, benign):
            taps, views = network.taps(x)[1], network.taps(reference_views(x))[1]
            held_out.append(taps[last_tap(network)].mean((2, 3)))
            changes.add(torch.cat([view_change(taps[name], views[name]) for name in taps], 1))
            progress(changes.n, len(benign))
    seen, device = torch.cat(held_out), held_out[0].device
    found = BenignFeatures(
        layer=last_tap(network),
        classes=classes,
        fit=torch.cat(features) if features else seen,
        fit_y=torch.from_numpy(fit.y if features else benign.y).to(device),
        held_out=seen,
        held_out_y=torch.from_numpy(benign.y).to(device),
        same=not features,
    )
    fitted: dict[str, Tensor] = {}
    for score in SCORES.values() if scores is None else map(score_named, scores):
        made = score.fit(found)
        if set(made) != set(score.constants) or set(made) & {"change_mean", "change_std", *fitted}:
            raise ValueError(f"the score {score.name} fitted {sorted(made)}, but states {sorted(score.constants)}")
        fitted |= made
    return Constants(changes.mean.float(), changes.std().float().clamp_min(1e-6), fitted)


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
