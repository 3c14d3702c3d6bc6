"""`palisade companion`, and what a bundle says of a companion that disagrees too often."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from gateway.core.loading import load_bundle
from gateway.core.manifest import Guard
from tests.training.bundling.test_wrap import MODEL, run, write_folder
from tests.training.models.test_adapted import Stages
from tests.training.toy import CLASSES, SIDE, gratings
from training.bundling.assemble import Plan, without_guard
from training.bundling.calibrate import TRUSTED, BenignScores
from training.bundling.companion import companion_recipe, split_as
from training.bundling.networks import load_defence
from training.bundling.wrap import image_folder
from training.errors import TrainingError
from training.models.averaged import Averaged
from training.recipes.training import DataSpec


@pytest.mark.parametrize(
    ("size", "side", "expected", "stride"),
    [(32, None, None, 1), (64, None, 32, 1), (224, None, 32, 1), (224, 64, 64, 2), (224, 224, 224, 4)],
)
def test_larger_images_are_averaged_down(size: int, side: int | None, expected: int | None, stride: int) -> None:
    data = DataSpec(source="folder:photos", size=size)
    recipe = companion_recipe("photos", "small_resnet", data, epochs=8, batch=64, side=side)
    assert recipe.model.side == expected
    assert recipe.model.stem_stride == stride
    assert recipe.epochs == 8
    assert all(stage.radius == 8 / 255 for stage in recipe.stages)
    assert recipe.ema > 0


def test_a_side_beyond_the_images_is_refused() -> None:
    with pytest.raises(TrainingError, match="side is 64, the images have 32 pixels"):
        companion_recipe("x", "small_resnet", DataSpec(source="folder:x", size=32), epochs=2, batch=64, side=64)


def benign(disagree: int, n: int = 100) -> BenignScores:
    zeros = np.zeros((n, 1))
    objects = np.arange(n) < disagree
    return BenignScores(
        zeros, zeros, zeros[:, 0], zeros[:, 0], np.arange(n), zeros[:, 0], lambda rows: rows, objects=objects
    )


@pytest.mark.parametrize(("disagree", "guards"), [(0, True), (25, True), (26, False), (90, False)])
def test_a_companion_that_disagrees_too_often_does_not_guard(disagree: int, guards: bool) -> None:
    guard = Guard(score="companion_strict", share_below=0.2, share=0.9, knee=0.005)
    plan = Plan("x", "1.0.0", {"notes": ["one"]}, [], guard=guard, screened_by=["companion_margin"], trusted=TRUSTED)
    scores = benign(disagree)
    assert scores.disagreement == disagree / 100
    made = without_guard(plan, scores.disagreement, 100)
    assert (made.guard is not None, bool(made.screened_by)) == (guards, guards)
    assert len(made.training["notes"]) == (1 if guards else 2)
    if not guards:
        assert f"disagrees with the network on {disagree}.0% of 100 clean images" in made.training["notes"][1]
    assert without_guard(plan, None, 100) is plan
    assert without_guard(replace(plan, trusted=1.0), 0.9, 100).guard is guard


@pytest.mark.reference
def test_a_low_resolution_companion_for_a_network_as_it_is(tmp_path: Path) -> None:
    """Trained on means of 2 x 2 pixels, wrapped with the network that sees all of them, and read again."""
    size, photos = 2 * SIDE, write_folder(tmp_path / "photos", gratings(400, seed=6), side=2 * SIDE)
    torch.manual_seed(0)
    save_file(Stages(CLASSES).state_dict(), tmp_path / "weights.safetensors")
    same = ["--weights", tmp_path / "weights.safetensors", "--data", photos, "--size", size]
    trained = run("companion", MODEL, *same, "--side", SIDE, "--epochs", 2, "--batch", 32, "--runs", tmp_path / "runs")
    assert trained.exit_code == 0, trained.output
    folder = tmp_path / "runs" / "stages-companion"
    assert f"--companion {folder}" in trained.stdout
    data = split_as(folder, image_folder(photos, size=size, resize=DataSpec(source="x").resize, seen=True))
    assert data.fractions[0] > 0
    made = run("wrap", MODEL, *same, "--companion", folder, "--out", tmp_path / "toy", "--samples", 1, "--threads", 1)
    assert made.exit_code == 0, made.output
    bundle = load_bundle(tmp_path / "toy")
    assert bundle.manifest.companion
    assert bundle.manifest.training["companion"]["model"]["side"] == SIDE
    disagrees = bundle.manifest.companion_disagrees
    assert disagrees is not None
    assert (bundle.manifest.calibrations[0].guard is None) == (disagrees > TRUSTED)
    assert ("note: the companion disagrees" in made.stdout) == (disagrees > TRUSTED)
    assert isinstance(load_defence(bundle).companion, Averaged)
