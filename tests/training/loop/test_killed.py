"""A run that is killed with SIGKILL at a random moment ends, once resumed, as one that was not."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from pathlib import Path

import torch

import training
from tests.training.toy import toy_dataset
from training.loop.trainer import Trainer
from training.models import build_model
from training.recipes.training import Recipe
from training.util.checkpoint import load_weights

ROOT = Path(training.__file__).parents[1]
RECIPE = Recipe.model_validate(
    {
        "name": "toy",
        "data": {"source": "npz:toy"},
        "model": {"width": 4},
        "batch": 32,
        "ema": 0.9,
        "stages": [
            {"name": "a", "epochs": 3, "lr": 0.05, "mask_augmentation": {}},
            {"name": "b", "epochs": 3, "lr": 0.02, "adversary": {"eps": 4, "steps": 2}, "awp": {"start_epoch": 1}},
        ],
        "early_stopping": {"images": 16, "patience": 2},
    }
)


def train(out: Path) -> None:
    torch.set_num_threads(1)
    Trainer(RECIPE, toy_dataset(train=96), out).run()


def test_killed_at_a_random_moment_and_resumed(tmp_path: Path) -> None:
    begin = time.perf_counter()
    train(tmp_path / "whole")
    usual = time.perf_counter() - begin
    killed = tmp_path / "killed"
    child = subprocess.Popen(
        [sys.executable, "-m", "tests.training.loop.test_killed", str(killed)], cwd=ROOT, env=os.environ
    )
    while child.poll() is None and not (killed / "environment.json").exists():
        time.sleep(0.01)
    moment = random.uniform(0, usual)  # of no seed: another moment every time
    time.sleep(moment)
    child.kill()
    child.wait()
    before = sorted(path.name for path in killed.iterdir())
    train(killed)
    said = f"killed after {moment:.3f} s with {before}"
    for name in ("checkpoint.json", "metrics.csv", "weights.safetensors"):
        assert (tmp_path / "whole" / name).read_bytes() == (killed / name).read_bytes(), said
    assert not list(killed.glob("*.part")), said
    network = build_model(RECIPE.model, classes=4, mean=[0.5] * 3, std=[0.5] * 3, side=16)
    load_weights(killed / "weights.safetensors", network)


if __name__ == "__main__":
    train(Path(sys.argv[1]))
