from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import training
from tests.training.toy import toy_dataset
from tests.training.two_processes import STAGES, recipe, train
from training.errors import RecipeError, TrainingError
from training.loop.trainer import Trainer
from training.util.distributed import average_, batch_mean
from training.util.processes import open_fabric, processes

ROOT = Path(training.__file__).parents[1]


def difference(a: dict[str, Tensor], b: dict[str, Tensor], kind: str) -> float:
    """Norm of the difference over the norm, of all tensors of a kind together."""
    names = [name for name in a if name.startswith(kind) and a[name].is_floating_point()]
    apart = torch.cat([(a[name] - b[name]).flatten() for name in names]).norm()
    return float(apart / torch.cat([a[name].flatten() for name in names]).norm())


def last_losses(folder: Path) -> dict[str, float]:
    row = json.loads((folder / "checkpoint.json").read_text("utf-8"))["history"][-1]
    return {name: value for name, value in row.items() if isinstance(value, float)}


def test_two_processes_make_the_steps_of_one(tmp_path: Path) -> None:
    """`torchrun` with two CPU processes (gloo), against one process: gradients, weights, averages and metrics.

    Apart by rounding alone, since shares of a batch are summed in another order: 1e-4 of their norm after the first
    steps. (Later it decides some signs of an attack's gradient, and runs part.) In TRADES that gradient is a difference
    of nearly equal probabilities from the start; there losses agree to 1 %.
    """
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [sys.executable, *command, "-m", "tests.training.two_processes", str(tmp_path)],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    alone = tmp_path / "alone"
    for name in STAGES:
        first, second = (load_file(tmp_path / f"{name}-{rank}.safetensors") for rank in (0, 1))
        assert all(torch.equal(first[key], second[key]) for key in first)
        one = train(name, alone)
        if name != "trades":
            for kind in ("gradient", "model", "average"):
                assert difference(one, first, kind) < 1e-4
        tolerance = 1e-2 if name == "trades" else 1e-4
        assert last_losses(tmp_path / name) == pytest.approx(last_losses(alone / name), rel=tolerance)
    (start,) = json.loads((tmp_path / "terms" / "environment.json").read_text("utf-8"))
    assert start["processes"] == 2
    assert sorted(path.name for path in (tmp_path / "terms").iterdir()) == sorted(
        path.name for path in (alone / "terms").iterdir()
    )


def test_a_batch_that_cannot_be_shared_is_refused(tmp_path: Path) -> None:
    fabric = type("Three", (), {"world_size": 3})()
    with pytest.raises(RecipeError, match="batch: 32 images cannot be divided among 3 processes"):
        Trainer(recipe("terms"), toy_dataset(train=96), tmp_path, fabric=fabric)


@pytest.mark.skipif(torch.cuda.is_available(), reason="of a machine without a GPU")
def test_a_gpu_that_is_not_there_is_said() -> None:
    with pytest.raises(TrainingError, match=r"1 GPU\(s\) asked for, 0 found .* --device cpu"):
        open_fabric("cuda")


def test_a_single_process_has_the_whole_batch() -> None:
    value = torch.tensor([1.0, 2.0])
    average_([value])
    assert torch.equal(value, torch.tensor([1.0, 2.0]))
    assert batch_mean(value) is value
    assert processes() == 1
    assert open_fabric("auto", "bf16").world_size == 1
