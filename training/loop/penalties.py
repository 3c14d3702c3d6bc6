"""The penalties of a training step, as the recipe's terms say, and what they need: sensitive neurons, teacher maps."""

from __future__ import annotations

import hashlib
import math
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Generator, Tensor, nn

from training.attacks.pgd import training_pgd
from training.data.dataset import Split
from training.imaging.pixels import to_tensor
from training.losses.align import align_probe
from training.losses.input_gradient import Probe, penalise
from training.losses.jacobian import jacobian_probe
from training.losses.perturbation_saliency import important_mask, perturbation_saliency
from training.losses.selective import selective_probe
from training.losses.settings import GradientTerm, Sns, Term, Terms
from training.losses.sns import neuron_sensitivity, select_sensitive, sns_penalty
from training.models.network import Network
from training.util.checkpoint import write_tensors
from training.util.module_modes import affine_batchnorm, frozen, seeded
from training.util.signatures import Predict

NAMES = ("jacobian", "selective", "align", "sns")


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
    same images (for the selective and the alignment term), and the `sensitive` neurons by layer (for SNS). All terms
    share one clean forward; `adversarial_taps`, which the task's forward gives, spare SNS the other one. Those may be
    of bf16: what that changes in the gradient is small beside a step's noise (tested). NCHW, which double backprop
    prefers on a CPU.
    """
    weights = {name: due(getattr(terms, name), progress=progress, step=step) for name in NAMES}
    part = max(2, round(terms.fraction * len(x)))
    x, y, adversarial = x[:part].detach().contiguous().requires_grad_(True), y[:part], adversarial[:part].contiguous()
    if not any(weights.values()):
        return {}
    with affine_batchnorm(network):
        logits, taps = network.taps(x)
        probes: dict[str, tuple[Probe, GradientTerm]] = {}
        if terms.jacobian and weights["jacobian"]:
            probes["jacobian"] = jacobian_probe(logits, generator), terms.jacobian
        if terms.selective and weights["selective"]:
            assert saliency is not None
            important = important_mask(saliency[:part], size=(x.shape[2], x.shape[3]), mass=terms.selective.mass)
            probes["selective"] = selective_probe(y, important, form=terms.selective.form), terms.selective
        if terms.align and weights["align"]:
            assert saliency is not None
            probes["align"] = align_probe(y, saliency[:part], grid=terms.align.grid), terms.align
        losses = {
            name: weights[name] * penalise(probe, network, x, logits, method=term.method, h=term.h)
            for name, (probe, term) in probes.items()
        }
        if weights["sns"]:
            others = adversarial_taps or network.taps(adversarial)[1]
            others = {name: other[:part].float() for name, other in others.items()}
            losses["sns"] = weights["sns"] * sns_penalty(taps, others, sensitive)
    return losses


def rank_neurons(
    sns: Sns, network: Network, predict: Predict, data: Split, *, eps: float, seed: int, epoch: int
) -> dict[str, Tensor]:
    """The most sensitive neurons now, {layer: channels}, from a fixed set of clean/adversarial pairs of `data`.

    PGD-10 of Linf radius `eps` (of 1) through `predict`, the network in the precision that training uses.
    """
    index = np.random.default_rng(seed).permutation(len(data))[: sns.pairs]
    device = next(network.parameters()).device
    x, y = to_tensor(data.x[index]).to(device), torch.from_numpy(data.y[index]).to(device)
    with frozen(network):
        adversarial = training_pgd(predict, x, y, eps=eps, steps=10, generator=seeded(seed, epoch, 1))
        with torch.no_grad():
            sensitivity = neuron_sensitivity(network.taps(x)[1], network.taps(adversarial)[1], relative=True)
    return select_sensitive(sensitivity, share=sns.share)


def teacher_maps(teacher: nn.Module, x: np.ndarray, *, grid: int, precision: str, cache: Path) -> Tensor:
    """Perturbation saliency (N, grid, grid) of uint8 images (N, H, W, C) by the frozen teacher, computed once.

    The maps are kept in the folder `cache`, which may be shared, in a file that is named after the settings and a hash
    of images and teacher. A file that can't be read, or holds something else, is written anew.
    """
    digest = hashlib.sha256(x.tobytes())
    for tensor in teacher.state_dict().values():
        digest.update(tensor.cpu().numpy().tobytes())
    path = cache / f"teacher-maps-{grid}-{precision}-{digest.hexdigest()[:16]}.safetensors"
    if (known := _read_maps(path, (len(x), grid, grid))) is not None:
        return known
    device = next(teacher.parameters()).device
    with frozen(teacher), torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
        parts = [
            perturbation_saliency(lambda z: teacher(z).float(), to_tensor(part).to(device), grid=grid).cpu()
            for part in np.array_split(x, max(1, len(x) // 256))
        ]
    maps = torch.cat(parts)
    cache.mkdir(parents=True, exist_ok=True)
    write_tensors(path, {"maps": maps})
    return maps


def _read_maps(path: Path, shape: tuple[int, ...]) -> Tensor | None:
    try:
        maps = load_file(path)["maps"]
    except (OSError, KeyError, SafetensorError):
        return None
    return maps if maps.shape == shape and bool(maps.isfinite().all()) else None
