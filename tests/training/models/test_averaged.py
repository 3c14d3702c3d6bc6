from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from gateway.core.manifest import InputSpec
from tests.training.exported import open_session
from tests.training.toy import CLASSES, SIDE, random_network
from training.bundling.networks import NETWORKS, load_networks, save_networks
from training.data.averaged import averaged
from training.data.dataset import SPLITS, Dataset, Split
from training.defence.constants import fit_constants
from training.defence.graph import DefenceGraph, companion_map
from training.defence.scores import chosen
from training.errors import TrainingError
from training.export.fold import folded
from training.export.onnx_file import EXAMPLE_BATCH, export_module
from training.imaging.pixels import to_tensor
from training.loop.runs import load_run
from training.loop.trainer import Trainer
from training.models import ModelSpec, build_model
from training.models.averaged import Averaged
from training.recipes.training import Adversary, DataSpec, Recipe, Stage

LOW = SIDE
HIGH = 2 * SIDE


@pytest.fixture(scope="module")
def large(toy: Dataset) -> Dataset:
    """The toy images at twice their side."""

    def doubled(split: Split) -> Split:
        return replace(split, x=split.x.repeat(2, axis=1).repeat(2, axis=2))

    train, select, calibrate, test = (doubled(getattr(toy, name)) for name in SPLITS)
    return replace(toy, train=train, select=select, calibrate=calibrate, test=test)


def test_the_network_sees_means_of_areas() -> None:
    inner = random_network(0)
    network, x = Averaged(inner, LOW), torch.rand(3, 3, HIGH, HIGH)
    means = torch.nn.functional.avg_pool2d(x, 2)
    torch.testing.assert_close(network(x), inner(means), atol=1e-5, rtol=1e-4)
    logits, taps = network.taps(x)
    torch.testing.assert_close(logits, inner(means), atol=1e-5, rtol=1e-4)
    assert taps["stem"].shape[2:] == (LOW, LOW)
    assert network.tap_channels == inner.tap_channels
    assert torch.equal(network(means), inner(means))  # images of its own side pass unchanged


def test_its_region_is_carried_up_to_the_image() -> None:
    network, x = Averaged(random_network(0), LOW), torch.rand(2, 3, HIGH, HIGH)
    label = nn.functional.one_hot(torch.tensor([1, 2]), CLASSES).float()
    logits, cam = companion_map(network, x, label)
    assert logits.shape == (2, CLASSES)
    assert cam.shape == (2, HIGH, HIGH)


def test_fewer_pixels_than_its_side_are_refused() -> None:
    spec = ModelSpec(width=4, side=HIGH)
    with pytest.raises(TrainingError, match="cannot be averaged down to 32"):
        build_model(spec, classes=2, mean=[0.0], std=[1.0], side=LOW)


def test_batchnorm_is_folded_inside() -> None:
    network, x = Averaged(random_network(0), LOW), torch.rand(2, 3, HIGH, HIGH)
    fold = folded(network, side=HIGH)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in fold.modules())
    torch.testing.assert_close(fold(x), network(x), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("high", [HIGH, HIGH + 5])
def test_a_defence_with_such_a_companion_is_exported_and_read_again(large: Dataset, tmp_path: Path, high: int) -> None:
    """With a side that divides and one that does not; the file of networks gives the companion back."""
    standard, companion = random_network(0), Averaged(random_network(1), LOW).eval()
    scores = chosen(["companion_strict"], companion=True)  # the gradient goes through the average
    constants = fit_constants(standard, large.train, large.select, classes=CLASSES, scores=scores)
    graph = DefenceGraph(folded(standard), folded(companion), constants, scores=scores).eval()
    pixels, mask = torch.rand(EXAMPLE_BATCH, 3, high, high), torch.zeros(EXAMPLE_BATCH, high, high)
    mask[1, 3:9, 4:12] = 1
    model = export_module(
        graph,
        tmp_path / "graph.onnx",
        inputs={"pixels": pixels, "mask": mask},
        outputs=list(graph(pixels, mask)._fields),
    )
    session = open_session(model.SerializeToString())
    found = session.run(None, {"pixels": pixels[:3].numpy(), "mask": mask[:3].numpy()})
    for value, expected, name in zip(found, graph(pixels[:3], mask[:3]), graph(pixels, mask)._fields, strict=True):
        np.testing.assert_allclose(value, expected.numpy(), atol=2e-4, rtol=1e-3, err_msg=name)

    save_networks(tmp_path / NETWORKS, standard=standard, companion=companion, constants=constants)
    models = {"standard": ModelSpec(width=4), "companion": ModelSpec(width=4, side=LOW)}
    again = load_networks(tmp_path / NETWORKS, models, classes=CLASSES, spec=InputSpec(height=high, width=high))[
        "companion"
    ]
    assert isinstance(again, Averaged)
    assert torch.equal(again(pixels), companion(pixels))


def test_data_are_averaged_as_the_network_averages(large: Dataset) -> None:
    low = averaged(large, LOW)
    assert low.describe() == large.describe()
    assert low.train.x.shape[1:3] == low.select.x.shape[1:3] == (LOW, LOW)
    network, x = Averaged(random_network(0), LOW).eval(), large.select.x[:8]
    torch.testing.assert_close(network(to_tensor(low.select.x[:8])), network(to_tensor(x)), atol=1e-2, rtol=1e-2)


def test_a_run_at_the_low_side_is_read_for_the_images_size(large: Dataset, tmp_path: Path) -> None:
    """Trained on means, it is a companion of a network that sees the images whole."""
    stage = Stage(name="adversarial", epochs=1, lr=0.05, adversary=Adversary(eps=4, steps=1))
    recipe = Recipe(
        name="low", data=DataSpec(source="toy"), model=ModelSpec(width=4, side=LOW), stages=[stage], batch=64
    )
    trainer = Trainer(recipe, large, tmp_path / "low")
    assert trainer.x.shape[1:3] == (LOW, LOW)
    trained = trainer.run()
    _, network = load_run(tmp_path / "low", large)
    assert isinstance(network, Averaged)
    x = to_tensor(large.test.x[:4])
    assert torch.equal(network(x), trained(x))
