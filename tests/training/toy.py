"""Easy data and small networks: classes are faint gratings, learnt in seconds and fooled within a few 255ths."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import yaml
from torch import Tensor, nn

from training.data.dataset import Dataset, Split
from training.imaging.pixels import to_tensor
from training.models import ModelSpec, build_model
from training.models.resnet import SmallResNet

SIDE, CLASSES = 16, 4
SPEC = ModelSpec(width=4)


def gratings(n: int, *, seed: int, contrast: float = 0.06, first_group: int = 0) -> Split:
    """uint8 (n, 16, 16, 3): a grating whose direction is the class, of random phase and colour, under noise."""
    rng = np.random.default_rng(seed)
    y = np.arange(n) % CLASSES
    rows, columns = np.mgrid[:SIDE, :SIDE]
    angle = (y * np.pi / CLASSES)[:, None, None]
    phase = rng.uniform(0, 2 * np.pi, (n, 1, 1))
    wave = np.sin(2 * np.pi / 5 * (np.cos(angle) * rows + np.sin(angle) * columns) + phase)
    colour = rng.uniform(0.6, 1.0, (n, 1, 1, 3))
    x = 0.5 + contrast * wave[..., None] * colour + 0.08 * rng.standard_normal((n, SIDE, SIDE, 3))
    return Split((x.clip(0, 1) * 255).round().astype(np.uint8), y.astype(np.int64), first_group + np.arange(n))


def toy_dataset(*, train: int = 256) -> Dataset:
    return Dataset(
        "toy",
        [f"direction {k}" for k in range(CLASSES)],
        gratings(train, seed=1),
        gratings(64, seed=2, first_group=10_000),
        gratings(64, seed=3, first_group=20_000),
        gratings(128, seed=4, first_group=30_000),
    )


def random_network(seed: int, *, classes: int = CLASSES, width: int = 4, warm: bool = True) -> SmallResNet:
    """Random weights; with `warm`, BatchNorm statistics that differ from 0 and 1."""
    torch.manual_seed(seed)
    network = build_model(ModelSpec(width=width), classes=classes, mean=[0.4, 0.5, 0.6], std=[0.2, 0.25, 0.3])
    if warm:
        with torch.no_grad():
            network(torch.rand(32, 3, SIDE, SIDE))
            for module in network.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.weight.uniform_(0.5, 1.5)
                    module.bias.uniform_(-0.3, 0.3)
    return network.eval()


def taught(network: SmallResNet, data: Dataset, *, steps: int) -> SmallResNet:
    """`network` after `steps` of 64 images: enough to classify the toy data."""
    optimizer = torch.optim.Adam(network.train().requires_grad_(True).parameters(), lr=0.01)
    x, y = to_tensor(data.train.x), torch.from_numpy(data.train.y)
    for step in range(steps):
        part = slice(64 * (step % 4), 64 * (step % 4) + 64)
        optimizer.zero_grad()
        F.cross_entropy(network(x[part]), y[part]).backward()
        optimizer.step()
    return network.eval().requires_grad_(False)


def write_sources(
    root: Path, *, count: int, tests: int, fractions: list[float], model: ModelSpec, bundle: Mapping[str, Any] = {}
) -> Path:
    """The files that `palisade build` needs, in `root`: `count` gratings with tracks of two, two recipes, a bundle's.

    Returns the bundle's recipe, to which `bundle` is added; data are found once PALISADE_DATA is `root`.
    """
    train, test = gratings(count, seed=1), gratings(tests, seed=2)
    np.savez(
        root / "gratings.npz",
        x_train=train.x,
        y_train=train.y,
        track_train=np.arange(count) // 2,
        x_test=test.x,
        y_test=test.y,
        classes=np.array([f"direction {k}" for k in range(CLASSES)]),
    )
    data = {"source": "npz:gratings", "fractions": fractions}
    common = {"data": data, "model": model.model_dump(mode="json"), "precision": "fp32"}
    roles = ("standard", "companion")
    for role in roles:
        recipe = {**common, "name": role, "stages": [{"name": "none", "epochs": 1, "lr": 0.1}]}
        (root / f"{role}.yaml").write_text(yaml.safe_dump(recipe))
    recipe = {
        "name": "gratings",
        "version": "1.0.0",
        **{role: f"{role}.yaml" for role in roles},
        "samples": 1,
        **bundle,
    }
    (root / "bundle.yaml").write_text(yaml.safe_dump(recipe))
    return root / "bundle.yaml"


class Linear(nn.Module):
    """logits = W x + b on flattened pixels: every Jacobian, margin and attack is known exactly."""

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight.clone())
        self.bias = nn.Parameter(torch.zeros(len(weight), dtype=weight.dtype) if bias is None else bias.clone())

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1) @ self.weight.T + self.bias


def softplus_network(*, classes: int = 3, channels: int = 2, side: int = 5, seed: int = 0) -> nn.Module:
    """A smooth network in float64 for finite differences."""
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(channels, 4, 3, padding=1), nn.Softplus(), nn.Flatten(), nn.Linear(4 * side * side, classes)
    ).double()


def square(size: int, top: int, left: int, side: int) -> Tensor:
    """A mask (size, size) with a square of ones."""
    mask = torch.zeros(size, size)
    mask[top : top + side, left : left + side] = 1
    return mask
