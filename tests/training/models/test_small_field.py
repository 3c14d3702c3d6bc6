from __future__ import annotations

from itertools import combinations_with_replacement
from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from gateway.core.manifest import InputSpec
from gateway.core.small_field import HARDEST, windows_for
from gateway.core.small_field_engine import SmallFieldEngine
from tests.training.small_fields import random_small_field
from tests.training.toy import CLASSES, toy_dataset
from training.export.small_field import export_small_field
from training.loop.trainer import Trainer
from training.models.small_field import SmallField, as_tensor, without_worst_windows
from training.recipes.training import Recipe

SIDE = 16


@pytest.fixture(scope="module", params=[None, 0.06], ids=["pixels", "logarithms"])
def network(request: pytest.FixtureRequest) -> SmallField:
    return random_small_field(classes=4, side=SIDE, logarithm=request.param)


def test_cells_see_the_pixels_that_are_stated_and_no_others(network: SmallField) -> None:
    x = torch.rand(1, 3, SIDE, SIDE, requires_grad=True)
    cells = network.cells(x)
    spec = network.spec
    assert cells.shape == (1, 4, spec.height, spec.width)
    seen = np.zeros((spec.height, spec.width, SIDE, SIDE), bool)
    for i in range(spec.height):
        for j in range(spec.width):
            for k in range(4):
                (gradient,) = torch.autograd.grad(cells[0, k, i, j], x, retain_graph=True)
                seen[i, j] |= (gradient[0] != 0).any(0).numpy()
            rows = np.arange(SIDE) - (spec.first + i * spec.stride)
            columns = np.arange(SIDE) - (spec.first + j * spec.stride)
            inside = ((rows >= 0) & (rows < spec.field))[:, None] & ((columns >= 0) & (columns < spec.field))[None]
            assert not (seen[i, j] & ~inside).any()
    assert seen.any((0, 1)).all(), "every pixel is seen"


def test_evidence_adds_up_to_the_logits(network: SmallField) -> None:
    x = torch.rand(3, 3, SIDE, SIDE)
    with torch.no_grad():
        torch.testing.assert_close(network.cells(x).sum((2, 3)), network(x))
        logits, taps = network.taps(x)
    assert {name: tap.shape[1] for name, tap in taps.items()} == network.tap_channels
    torch.testing.assert_close(logits, network(x))


def test_exposure_shifts_the_logarithms_that_enter() -> None:
    network = random_small_field(classes=4, side=SIDE, logarithm=1e-4)
    entered = []
    network.normalise.register_forward_pre_hook(lambda _module, given: entered.append(given[0]))
    x = torch.rand(1, 3, SIDE, SIDE) * 0.5 + 0.2
    with torch.no_grad():
        network(x)
        network(x / 2)
    bright, dark = entered
    assert 0 <= dark.min() < bright.max() <= 1
    assert (bright - dark).std() < 1e-4


def test_the_worst_windows_are_left_out_one_after_the_other(network: SmallField) -> None:
    x, y = torch.rand(6, 3, SIDE, SIDE), torch.arange(6) % 4
    windows = windows_for(network.spec, SIDE, SIDE, 3)
    with torch.no_grad():
        cells = network.cells(x)
    found = without_worst_windows(cells, y, as_tensor(windows, cells))

    def lead(logits: torch.Tensor) -> torch.Tensor:
        own = torch.nn.functional.one_hot(y, 4).bool()
        return logits[own] - logits.masked_fill(own, -torch.inf).amax(1)

    flat = cells.flatten(2)
    every = [
        lead((flat * (1 - torch.maximum(torch.tensor(a), torch.tensor(b)))).sum(2))
        for a, b in combinations_with_replacement(windows.windows.T, 2)
    ]
    assert (lead(found) >= torch.stack(every).amin(0) - 1e-5).all()
    assert (lead(found) <= torch.stack(every).amax(0)).all()
    right = lead(flat.sum(2)) > 0
    assert right.any()
    assert (lead(found) < lead(flat.sum(2)))[right].all()


def test_the_loss_is_lowered_and_other_networks_are_refused(tmp_path: Path) -> None:
    content = {
        "name": "fields",
        "data": {"source": "npz:toy"},
        "model": {"arch": "small_field", "width": 8},
        "batch": 32,
        "precision": "fp32",
        "stages": [{"name": "windows", "epochs": 3, "lr": 0.05, "worst_windows": {"share": 0.7}}],
    }
    losses: list[float] = []
    run = Trainer(Recipe.model_validate(content), toy_dataset(train=96), tmp_path / "run")
    made = run.run(lambda event: losses.append(event["ce_windows"]) if "epoch" in event else None)
    assert isinstance(made, SmallField)
    assert losses[-1] < losses[0]
    with pytest.raises(ValidationError, match="arch small_field"):
        Recipe.model_validate(content | {"model": {"width": 4}})
    stage = {"name": "both", "epochs": 1, "lr": 0.1, "worst_windows": {}, "worst_masks": {}}
    with pytest.raises(ValidationError, match="worst_windows are of standard training"):
        Recipe.model_validate(content | {"stages": [stage]})


@pytest.mark.parametrize(
    ("classes", "logarithm"), [(2, None), (CLASSES, 0.06), (HARDEST + 1, None), (HARDEST + 4, 0.5)]
)
def test_the_graph_proves_what_torch_adds_up(classes: int, logarithm: float | None, tmp_path: Path) -> None:
    network = random_small_field(classes=classes, side=SIDE, logarithm=logarithm)
    spec = InputSpec(height=SIDE, width=SIDE)
    export_small_field(network, tmp_path, spec)
    engine = SmallFieldEngine(tmp_path, network.spec, spec, classes, provider="cpu", threads=1)
    pixels = np.random.default_rng(0).random((5, 3, SIDE, SIDE), np.float32)
    with torch.no_grad():
        cells = network.cells(torch.from_numpy(pixels)).flatten(2).numpy()
    np.testing.assert_allclose(engine.evidence(pixels).reshape(cells.shape), cells, atol=1e-5)
    windows = engine.windows_for(3)
    for found, evidence in zip(engine.prove(pixels, 3), cells, strict=True):
        assert found.index == evidence.sum(1).argmax()
        for got, kept in ((found.one, 1 - windows.windows), (found.two, windows.kept)):
            logits = evidence @ kept
            least = float((logits[found.index] - np.delete(logits, found.index, axis=0).max(0)).min())
            # Of classes beyond the hardest there is a bound from below.
            assert got <= least + 1e-5
            if classes <= HARDEST + 1:
                assert got == pytest.approx(least, abs=1e-5)
