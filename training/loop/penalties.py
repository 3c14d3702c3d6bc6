"""The penalties of a training step, as the recipe's terms ask, and the sensitive neurons that they need."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Generator, Tensor

from training.attacks.pgd import training_pgd
from training.data.dataset import Split
from training.imaging.pixels import to_tensor
from training.losses.settings import Terms
from training.losses.sns import neuron_sensitivity, select_sensitive
from training.losses.term import Context, NeuronTerm, Term
from training.models.network import Network
from training.util.module_modes import affine_batchnorm, frozen, seeded
from training.util.signatures import Predict


def due(term: Term | None, *, progress: float, step: int) -> float:
    """The weight of `term` in this step: 0 where it is not computed.

    `progress` is in epochs (with fractions) and `step` in steps since the start of the stage.
    """
    if term is None or step % term.every:
        return 0.0
    ramp = min(1.0, progress / term.ramp_epochs) if term.ramp_epochs else 1.0
    return term.weight * term.every * ramp


def penalties(
    terms: Terms,
    network: Network,
    x: Tensor,
    y: Tensor,
    adversarial: Tensor,
    saliency: Tensor | None,
    sensitive: dict[str, Tensor],
    generator: Generator,
    *,
    adversarial_taps: dict[str, Tensor] | None = None,
    progress: float = math.inf,
    step: int = 0,
) -> dict[str, Tensor]:
    """Weighted penalties (scalars, fp32) by term, of those that are `due`, on the first `fraction` of the batch.

    Images `x` and `adversarial` (N, C, H, W) in [0, 1], labels `y` (N,), the teacher's `saliency` (N, H, W) of the
    same images (for terms with a `grid`), and the `sensitive` neurons by layer (for a `NeuronTerm`). All terms share
    one clean forward; `adversarial_taps`, which the task's forward gives, spare the other one. Those may be of bf16:
    what that changes in the gradient is small beside a step's noise (tested). NCHW, which double backprop prefers on a
    CPU.
    """
    wanted = {name: (term, due(term, progress=progress, step=step)) for name, term in terms.of(Term).items()}
    wanted = {name: (term, weight) for name, (term, weight) in wanted.items() if weight}
    if not wanted:
        return {}
    part = max(2, round(terms.fraction * len(x)))
    x, adversarial = x[:part].detach().contiguous().requires_grad_(True), adversarial[:part].contiguous()

    def others() -> dict[str, Tensor]:
        found = adversarial_taps or network.taps(adversarial)[1]
        return {name: tap[:part].float() for name, tap in found.items()}

    with affine_batchnorm(network):
        logits, taps = network.taps(x)
        seen = None if saliency is None else saliency[:part]
        context = Context(network, x, y[:part], logits, taps, others, seen, sensitive, generator)
        return {name: weight * term.penalty(context) for name, (term, weight) in wanted.items()}


def rank_neurons(
    term: NeuronTerm, network: Network, predict: Predict, data: Split, *, eps: float, seed: int, epoch: int
) -> dict[str, Tensor]:
    """The most sensitive neurons now, {layer: channels}, from a fixed set of clean/adversarial pairs of `data`.

    PGD-10 of Linf radius `eps` (of 1) through `predict`, the network in the precision that training uses.
    """
    index = np.random.default_rng(seed).permutation(len(data))[: term.pairs]
    device = next(network.parameters()).device
    x, y = to_tensor(data.x[index]).to(device), torch.from_numpy(data.y[index]).to(device)
    with frozen(network):
        adversarial = training_pgd(predict, x, y, eps=eps, steps=10, generator=seeded(seed, epoch, 1))
        with torch.no_grad():
            sensitivity = neuron_sensitivity(network.taps(x)[1], network.taps(adversarial)[1], relative=True)
    return select_sensitive(sensitivity, share=term.share)
