"""A defence graph with the strict score: what it adds, and its export."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.training.exported import open_session
from tests.training.toy import CLASSES, SIDE, random_network
from training.attacks.margin import margin
from training.data.dataset import Dataset
from training.defence.constants import fit_constants
from training.defence.graph import DefenceGraph, DefenceOutputs
from training.defence.scores import chosen, default_scores
from training.defence.scores.companion_strict import RADIUS
from training.errors import TrainingError
from training.export.fold import folded
from training.export.onnx_file import EXAMPLE_BATCH, export_module
from training.util.module_modes import seeded

STRICT = "companion_strict"


@pytest.fixture(scope="module")
def strict(toy: Dataset) -> DefenceGraph:
    network, companion = folded(random_network(0)), folded(random_network(1))
    constants = fit_constants(network, toy.train, toy.select, classes=CLASSES)
    return DefenceGraph(network, companion, constants, scores=chosen([STRICT], companion=True)).eval()


@pytest.fixture(scope="module")
def pixels() -> Tensor:
    return torch.rand(5, 3, SIDE, SIDE, generator=seeded(1))


def test_the_last_score_is_the_companions_doubt_after_a_signed_step(strict: DefenceGraph, pixels: Tensor) -> None:
    out = strict(pixels, torch.zeros(5, SIDE, SIDE))
    assert strict.score_names == (*default_scores(companion=True), STRICT)
    assert strict.companion is not None
    leaf, label = pixels.clone().requires_grad_(), out.logits.argmax(1)
    (gradient,) = torch.autograd.grad(margin(strict.companion(leaf), label).sum(), leaf)
    stepped = (pixels - RADIUS * gradient.sign()).clamp(0, 1)
    torch.testing.assert_close(out.scores[:, -1], -margin(strict.companion(stepped), label), atol=1e-4, rtol=1e-4)
    assert (out.scores[:, -1] > out.scores[:, -2]).all()


def test_all_else_is_as_without_it(strict: DefenceGraph, defence: DefenceGraph, pixels: Tensor) -> None:
    mask = torch.zeros(5, SIDE, SIDE)
    told, plain = strict(pixels, mask)._asdict(), defence(pixels, mask)._asdict()
    assert torch.equal(told.pop("scores")[:, :-1], plain.pop("scores"))
    assert all(torch.equal(told[name], plain[name]) for name in plain)


def test_without_a_companion_it_is_left_out(strict: DefenceGraph, toy: Dataset) -> None:
    constants = fit_constants(strict.network, toy.train, toy.select, classes=CLASSES)
    assert STRICT not in DefenceGraph(strict.network, None, constants).score_names
    with pytest.raises(TrainingError, match="'companion_strict' needs a companion"):
        chosen([STRICT], companion=False)
    with pytest.raises(TrainingError, match="'companion_strict' needs a companion"):
        DefenceGraph(strict.network, None, constants, scores=[STRICT])


def test_it_is_exported_as_it_is(strict: DefenceGraph, pixels: Tensor, tmp_path: Path) -> None:
    inputs = {"pixels": torch.rand(EXAMPLE_BATCH, 3, SIDE, SIDE), "mask": torch.zeros(EXAMPLE_BATCH, SIDE, SIDE)}
    names = list(DefenceOutputs._fields)
    model = export_module(strict, tmp_path / "g.onnx", inputs=inputs, outputs=names)
    mask = torch.zeros(5, SIDE, SIDE)
    mask[2, 3:9, 4:9] = 1
    session = open_session(model.SerializeToString())
    found = session.run(["scores"], {"pixels": pixels.numpy(), "mask": mask.numpy()})[0]
    torch.testing.assert_close(torch.from_numpy(found), strict(pixels, mask).scores, atol=1e-3, rtol=1e-3)
