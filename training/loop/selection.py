"""What a run measures on the select split after each epoch."""

from __future__ import annotations

import torch
from lightning_fabric import Fabric
from torch import Generator, Tensor, nn

from training.attacks.early import pgd_until_fooled
from training.data.dataset import Split
from training.imaging.pixels import to_tensor
from training.util.module_modes import frozen


@torch.no_grad()
def accuracy(model: nn.Module, split: Split, *, batch: int = 512) -> float:
    """Share of images whose arg max is the label, in evaluation mode, on the device of the network."""
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    hits = 0
    with frozen(model):
        for i in range(0, len(split), batch):
            x, y = to_tensor(split.x[i : i + batch], device), torch.from_numpy(split.y[i : i + batch]).to(device)
            hits += int((model(x).argmax(1) == y).sum())
    return hits / len(split)


def robust_accuracy(
    model: nn.Module, split: Split, fabric: Fabric, *, eps: float, steps: int, generator: Generator
) -> float:
    """Share of images that PGD (Linf radius `eps`, of 1) does not fool `model` on, in the precision of `fabric`."""
    device = fabric.device

    def predict(x: Tensor) -> Tensor:
        logits: Tensor
        with fabric.autocast():
            logits = model(x).float()
        return logits

    # What is left of a batch shrinks: no search for the fastest convolution at every size (cuDNN).
    with frozen(model), torch.backends.cudnn.flags(enabled=True, benchmark=False, allow_tf32=False):
        x, y = to_tensor(split.x).to(device), torch.from_numpy(split.y).to(device)
        fooled = pgd_until_fooled(predict, x, y, eps=eps, steps=steps, generator=generator)[1]
    return 1 - float(fooled.double().mean())
