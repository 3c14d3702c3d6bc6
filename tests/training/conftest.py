from __future__ import annotations

from pathlib import Path

import onnx
import pytest
import torch
from torch import Tensor

from tests.training.exported import Exported, open_session
from tests.training.once import made_once
from tests.training.toy import CLASSES, SIDE, SPEC, random_network, taught, toy_dataset
from training.data.dataset import Dataset
from training.defence.constants import fit_constants
from training.defence.graph import DefenceGraph, DefenceOutputs
from training.export.fold import folded
from training.export.onnx_file import EXAMPLE_BATCH, export_module
from training.imaging.pixels import to_tensor
from training.models import build_model
from training.models.resnet import SmallResNet


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
    assert isinstance(network, SmallResNet)
    return taught(network, toy, steps=60)


@pytest.fixture(scope="session")
def test_images(toy: Dataset) -> tuple[Tensor, Tensor]:
    return to_tensor(toy.test.x), torch.from_numpy(toy.test.y)


@pytest.fixture(scope="session")
def defence(toy: Dataset) -> DefenceGraph:
    """Two random networks and benign constants of the toy data."""
    network, companion = folded(random_network(0)), folded(random_network(1))
    return DefenceGraph(network, companion, fit_constants(network, toy.train, toy.select, classes=CLASSES)).eval()


@pytest.fixture(scope="session")
def exported(defence: DefenceGraph, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    def export(folder: Path) -> None:
        inputs = {
            "pixels": torch.rand(EXAMPLE_BATCH, 3, SIDE, SIDE),
            "mask": torch.zeros(EXAMPLE_BATCH, SIDE, SIDE),
        }
        outputs, meta = list(DefenceOutputs._fields), {"palisade.test": "yes"}
        export_module(defence, folder / "graph.onnx", inputs=inputs, outputs=outputs, meta=meta)

    path = made_once(tmp_path_factory, "exported", export) / "graph.onnx"
    return Exported(defence, path, onnx.load(path), open_session(path.read_bytes()))
