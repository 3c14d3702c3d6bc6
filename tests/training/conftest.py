from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.training.toy import SPEC, toy_dataset
from training.data import Dataset
from training.models import build_model
from training.models.resnet import SmallResNet
from training.trainer import to_tensor


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def toy() -> Dataset:
    return toy_dataset()


@pytest.fixture(scope="session")
def trained(toy: Dataset) -> SmallResNet:
    """A standard network that classifies the toy data; for measurements, never changed by a test."""
    torch.manual_seed(0)
    network = build_model(SPEC, classes=len(toy.classes), mean=[0.5] * 3, std=[0.15] * 3)
    optimizer = torch.optim.Adam(network.parameters(), lr=0.01)
    x, y = to_tensor(toy.train.x), torch.from_numpy(toy.train.y)
    for step in range(60):
        part = slice(64 * (step % 4), 64 * (step % 4) + 64)
        optimizer.zero_grad()
        F.cross_entropy(network(x[part]), y[part]).backward()
        optimizer.step()
    return network.eval().requires_grad_(False)


@pytest.fixture(scope="session")
def test_images(toy: Dataset) -> tuple[Tensor, Tensor]:
    return to_tensor(toy.test.x), torch.from_numpy(toy.test.y)
