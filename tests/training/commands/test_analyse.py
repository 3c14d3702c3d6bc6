from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from tests.training.toy import SPEC, gratings
from training.commands.analyse import app
from training.recipes.training import Recipe
from training.util.checkpoint import save_weights


@pytest.fixture(scope="module")
def run_folder(trained, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run on data in a file, without the training."""
    folder = tmp_path_factory.mktemp("runs")
    train, test = gratings(256, seed=1), gratings(64, seed=4)
    np.savez(
        folder / "toy.npz", x_train=train.x, y_train=train.y, x_test=test.x, y_test=test.y, group_train=train.group
    )
    recipe = Recipe.model_validate(
        {
            "name": "toy",
            "data": {"source": "npz:toy"},
            "model": SPEC.model_dump(),
            "stages": [{"name": "standard", "epochs": 1, "lr": 0.1}],
        }
    )
    run = folder / "toy"
    run.mkdir()
    (run / "recipe.json").write_text(recipe.model_dump_json())
    save_weights(run / "weights.safetensors", trained)
    return run


def test_layers_of_a_run_as_table_json_and_page(run_folder: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("PALISADE_DATA", str(run_folder.parent))
    done = CliRunner().invoke(
        app, ["layers", str(run_folder), "--out", str(tmp_path), "--images", "16", "--steps", "2"]
    )
    assert done.exit_code == 0, done.output
    assert "seed 0" in done.output
    content = json.loads((tmp_path / "layers.json").read_text())
    assert (content["subject"], content["split"]) == ("toy", "test")
    report = content["networks"]["toy"]
    assert report["images"] == 16
    assert set(report["vulnerable"]) < {row["layer"] for row in report["layers"]}
    assert (tmp_path / "layers.html").read_text().startswith("<!doctype html>")


def test_sensitivity_of_a_run_as_tables_and_json(run_folder: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("PALISADE_DATA", str(run_folder.parent))
    path = tmp_path / "new" / "sensitivity.json"
    options = ["--images", "16", "--steps", "2", "--draws", "2", "--top", "2", "--json", str(path)]
    done = CliRunner().invoke(app, ["sensitivity", str(run_folder), *options])
    assert done.exit_code == 0, done.output
    assert "16 images of the test split, PGD-2 at 8/255, seed 0" in done.output
    content = json.loads(path.read_text())
    assert (content["subject"], content["n"], content["split"], content["seed"]) == ("toy", 16, "test", 0)
    study = content["networks"]["toy"]
    assert [row["layer"] for row in study["layers"]] == ["stem", "stage1", "stage2", "stage3"]
    assert [row["masked"] for row in study["masking"]["layers"]] == [1, 1, 1, 2]


def test_what_is_neither_a_bundle_nor_a_run(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["layers", str(tmp_path)])
    assert done.exit_code == 2
    assert "neither a bundle nor a run folder" in done.stderr
