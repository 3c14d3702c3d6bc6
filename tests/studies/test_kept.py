"""The studies that put networks kept as files side by side."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from gateway.core.certificate import CertificateWanted
from gateway.core.masks import MaskSet
from studies import masked, patched, robust
from tests.training.toy import gratings, random_network
from training.bundling.provenance import load_data
from training.errors import TrainingError
from training.loop.train import train
from training.loop.weights import keep_run
from training.recipes.training import Recipe


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    seen, test = gratings(160, seed=1), gratings(16, seed=2)
    np.savez(tmp_path / "toy.npz", x_train=seen.x, y_train=seen.y, group_train=seen.group, x_test=test.x, y_test=test.y)
    monkeypatch.setenv("PALISADE_DATA", str(tmp_path))
    stages = [{"name": "standard", "epochs": 1, "lr": 0.05}]
    content = {"name": "toy", "data": {"source": "npz:toy"}, "model": {"width": 8}, "batch": 32, "stages": stages}
    recipe = Recipe.model_validate(content | {"precision": "fp32"})
    data = load_data(recipe)
    train(recipe, data, runs=tmp_path / "runs")
    keep_run(tmp_path / "runs" / "toy", tmp_path / "toy.safetensors", data)
    return tmp_path / "toy.safetensors"


def test_both_report_every_file_on_the_same_images(kept: Path, tmp_path: Path) -> None:
    robust.main([kept, kept], json_path=tmp_path / "robust.json", n=8, steps=2)
    masked.main([kept], json_path=tmp_path / "masked.json", n=4, patch=[3])
    found = json.loads((tmp_path / "robust.json").read_text("utf-8"))
    first, again = found["networks"]
    assert first == again
    assert (found["split"], first["file"], first["epochs"]) == ("select", "toy.safetensors", 1)
    assert first["pgd2_8"]["mean"] <= first["pgd2_4"]["mean"] <= 1
    (one,) = json.loads((tmp_path / "masked.json").read_text("utf-8"))["networks"]
    assert one["3"]["proved_and_right"]["mean"] <= one["3"]["agreed_and_right"]["mean"]


def test_accuracy_under_patches_is_reported_by_attack(kept: Path, tmp_path: Path) -> None:
    patched.main([kept], json_path=tmp_path / "patched.json", n=4, attacks=["bars", "colour_cast"])
    (one,) = json.loads((tmp_path / "patched.json").read_text("utf-8"))["networks"]
    assert {"bars", "colour_cast", "clean"} <= set(one)
    assert one["bars"]["n"] == 4
    with pytest.raises(TrainingError, match=r"no such attack: lasers; there are .*bars"):
        patched.main([kept], attacks=["lasers"])


def test_a_label_that_no_mask_changes_is_proved() -> None:
    class Constant(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.tensor([[0.0, 1.0]]).expand(len(x), 2)

    wanted = CertificateWanted(MaskSet(16, 16, 3, 2))
    x = torch.rand(3, 16, 16)
    assert masked.level_of(Constant(), x, 1, wanted) == "proved"  # type: ignore[arg-type]
    assert masked.level_of(Constant(), x, 0, wanted) == "none"  # type: ignore[arg-type]
    assert masked.level_of(random_network(0), x, 0, wanted) in ("none", "agreed", "proved")


def test_more_images_than_there_are_are_refused() -> None:
    with pytest.raises(TrainingError, match="4 images, 5 are asked for"):
        robust.drawn(gratings(4, seed=0), n=5, seed=0)
