"""`palisade train` and what it says about bad input: one line, exit code 2, nothing that passes for a run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from typer.testing import CliRunner, Result

from tests.training.toy import gratings
from training.commands.main import app

RECIPE: dict[str, Any] = {
    "name": "toy",
    "data": {"source": "npz:toy"},
    "model": {"width": 4},
    "batch": 32,
    "precision": "fp32",
    "stages": [{"name": "standard", "epochs": 1, "lr": 0.05}],
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    train, test = gratings(96, seed=1), gratings(16, seed=2)
    np.savez(tmp_path / "toy.npz", x_train=train.x, y_train=train.y, x_test=test.x, y_test=test.y)
    monkeypatch.setenv("PALISADE_DATA", str(tmp_path))
    return tmp_path


def run(folder: Path, *options: str, **changes: Any) -> Result:
    (folder / "recipe.yaml").write_text(yaml.safe_dump(RECIPE | changes), "utf-8")
    return CliRunner().invoke(app, ["train", str(folder / "recipe.yaml"), "--runs", str(folder / "runs"), *options])


def test_a_run_and_what_its_folder_says(folder: Path) -> None:
    done = run(folder, "--device", "cpu", "--threads", str(torch.get_num_threads()))
    assert done.exit_code == 0, done.output
    assert "select accuracy" in " ".join(done.output.split())
    made = folder / "runs" / "toy"
    (start,) = json.loads((made / "environment.json").read_text("utf-8"))
    assert start["device"] == "cpu"
    assert start["processes"] == 1
    assert start["threads"] == torch.get_num_threads()
    assert start["precision"] == "fp32"
    assert start["torch"] == torch.__version__
    assert {"started", "palisade", "python", "numpy", "commit", "after_epoch"} <= set(start)
    outcome = json.loads((made / "outcome.json").read_text("utf-8"))
    assert outcome["epochs"] == outcome["kept_epoch"] == 1
    assert not outcome["stopped_early"]
    assert outcome["metrics"]["loss"] > 0
    assert (made / "metrics.csv").read_text("utf-8").startswith("epoch,stage,loss,ce,select_clean\n1,standard,")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"sneed": 3}, "sneed: Extra inputs are not permitted"),
        ({"stages": [{"name": "a", "epochs": 1, "lr": 0.1, "adversary": {"epsilon": 8}}]}, "adversary.epsilon"),
        ({"stages": [{"name": "a", "epochs": 1, "lr": 0.1, "adversary": {}, "trades": {}}]}, "not both"),
        ({"data": {"source": "npz:absent"}}, "absent.npz is missing"),
        ({"data": {"source": "ftp:toy"}}, "unknown data source"),
        ({"init": "nobody"}, "nobody is not a finished run"),
        ({"teacher": "nobody"}, "nobody is not a finished run"),
        ({"stages": [{"name": "a", "epochs": 3, "lr": 1e30}]}, "not finite in stage a, step"),
    ],
)
def test_bad_input_is_one_line(folder: Path, changes: dict[str, Any], said: str) -> None:
    done = run(folder, **changes)
    assert done.exit_code == 2
    (line,) = [line for line in done.output.splitlines() if line.startswith("error")]
    assert said in line
    assert "Traceback" not in done.output
    assert not list(folder.glob("runs/*/weights.safetensors"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="of a machine without a GPU")
def test_a_gpu_that_is_not_there(folder: Path) -> None:
    done = run(folder, "--device", "cuda")
    assert done.exit_code == 2
    assert "0 found" in done.output


def test_a_start_of_another_architecture(folder: Path) -> None:
    assert run(folder, name="start").exit_code == 0
    done = run(folder, init="start", model={"width": 8})
    assert done.exit_code == 2
    assert "the network of run start is not of the recipe's `model`" in done.output


def test_only_training_runs_in_several_processes(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"TORCHELASTIC_RUN_ID": "x", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    done = CliRunner().invoke(app, ["build", str(folder / "recipe.yaml"), "--out", str(folder / "out")])
    assert done.exit_code == 2
    assert "only `palisade train` runs in several processes" in done.output
