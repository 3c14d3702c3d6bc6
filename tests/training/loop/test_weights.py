"""Networks kept as files: written from runs, read back with what they state, and started from."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from tests.training.toy import gratings, toy_dataset
from training.data.dataset import Dataset
from training.errors import TrainingError
from training.loop.runs import core_hours
from training.loop.train import train
from training.loop.trainer import Trainer
from training.loop.weights import INIT, averaged, keep_run, load_kept, read_kept, weights_at, write_kept
from training.models import ModelSpec
from training.recipes.training import Recipe

STAGE = {"name": "standard", "epochs": 1, "lr": 0.05}


def recipe(name: str = "toy", **changes: Any) -> Recipe:
    content: dict[str, Any] = {
        "name": name,
        "data": {"source": "npz:toy"},
        "model": {"width": 8},
        "batch": 32,
        "precision": "fp32",
        "stages": [STAGE],
    }
    return Recipe.model_validate(content | changes)


@pytest.fixture(scope="module")
def data() -> Dataset:
    return toy_dataset(train=64)


@pytest.fixture(scope="module")
def kept(data: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    train(recipe(), data, runs=folder)
    keep_run(folder / "toy", folder / "toy.safetensors", data)
    return folder / "toy.safetensors"


def same(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def test_a_file_holds_the_network_and_states_its_training(kept: Path, data: Dataset) -> None:
    stated, network = load_kept(kept, ModelSpec(width=8), data)
    assert stated.recipe == recipe()
    assert stated.data == json.loads(json.dumps(data.describe()))
    assert stated.epochs == 1
    assert stated.core_hours == pytest.approx(core_hours(kept.parent / "toy"), abs=1e-3)
    finished = load_file(kept.parent / "toy" / "weights.safetensors")
    assert all(torch.equal(tensor, finished[name]) for name, tensor in network.state_dict().items())


def test_training_starts_from_a_file_and_states_it(kept: Path, data: Dataset, tmp_path: Path) -> None:
    tiny = recipe("more", init=str(kept), stages=[STAGE | {"lr": 1e-12}], weight_decay=0)
    more = train(tiny, data, runs=tmp_path)
    before = load_kept(kept, ModelSpec(width=8), data)[1]
    pairs = zip(more.parameters(), before.parameters(), strict=True)
    moved = max(float((a - b).detach().abs().max()) for a, b in pairs)
    assert moved < 1e-6
    stated = keep_run(tmp_path / "more", tmp_path / "more.safetensors", data)
    assert stated.started_from == read_kept(kept)
    assert stated.totals[0] == 2


def test_a_file_of_another_model_may_be_the_teacher(kept: Path, data: Dataset, tmp_path: Path) -> None:
    terms = {"fraction": 0.5, "selective": {"weight": 0.1, "grid": 3}}
    stage = STAGE | {"batchnorm": "frozen", "adversary": {"eps": 4, "steps": 1}, "terms": terms}
    wider = recipe("wider", model={"width": 16}, stages=[stage], teacher=str(kept))
    train(wider, data, runs=tmp_path)
    assert list((tmp_path / ".cache").glob("teacher-maps-3-*"))
    with pytest.raises(TrainingError, match="no file absent"):
        train(recipe("none", stages=[stage], teacher="absent.safetensors"), data, runs=tmp_path)


def test_what_a_begun_run_started_from_stays_noted(kept: Path, data: Dataset, tmp_path: Path) -> None:
    """The file may have been replaced by the time that the run is resumed."""
    more = recipe("more", init=str(kept))
    train(more, data, runs=tmp_path)
    noted = (tmp_path / "more" / INIT).read_bytes()
    (tmp_path / "more" / "weights.safetensors").unlink()
    train(recipe("more", init=str(kept)), data, runs=tmp_path)
    assert (tmp_path / "more" / INIT).read_bytes() == noted


def test_of_an_unfinished_run_the_average_is_kept(data: Dataset, tmp_path: Path) -> None:
    network = Trainer(recipe(ema=0.9), data, tmp_path / "toy").run()
    (tmp_path / "toy" / "weights.safetensors").unlink()
    keep_run(tmp_path / "toy", tmp_path / "toy.safetensors", data)
    assert same(load_kept(tmp_path / "toy.safetensors", ModelSpec(width=8), data)[1], network)


def test_a_file_of_a_part_of_the_frames_fits_the_same_groups(kept: Path, data: Dataset) -> None:
    twice = {name: getattr(data, name) for name in ("train", "select", "calibrate")}
    more = replace(data, **{name: split.take([*range(len(split)), 0]) for name, split in twice.items()})
    load_kept(kept, ModelSpec(width=8), more)


def test_a_file_of_other_groups_is_refused(kept: Path, data: Dataset) -> None:
    other = replace(data, select=gratings(64, seed=9, first_group=0))
    with pytest.raises(TrainingError, match="other groups"):
        load_kept(kept, ModelSpec(width=8), other)


def test_a_file_of_another_model_is_refused(kept: Path, data: Dataset) -> None:
    with pytest.raises(TrainingError, match=r"width 8.*not of .*width 16"):
        load_kept(kept, ModelSpec(width=16), data)


def test_tensors_that_do_not_fit_are_refused(kept: Path, data: Dataset, tmp_path: Path) -> None:
    tensors = load_file(kept)
    tensors["head.weight"] = tensors["head.weight"][:, :4]
    write_kept(tmp_path / "cut.safetensors", tensors, read_kept(kept))
    with pytest.raises(TrainingError, match=r"cut\.safetensors does not fit: .*head\.weight"):
        load_kept(tmp_path / "cut.safetensors", ModelSpec(width=8), data)


def test_files_that_state_nothing_are_refused(kept: Path, tmp_path: Path) -> None:
    save_file(load_file(kept), tmp_path / "bare.safetensors")
    (tmp_path / "text.safetensors").write_text("no tensors")
    with pytest.raises(TrainingError, match="do not state how it was trained"):
        read_kept(tmp_path / "bare.safetensors")
    with pytest.raises(TrainingError, match="not a file of weights"):
        read_kept(tmp_path / "text.safetensors")
    with pytest.raises(TrainingError, match=r"no file weights/none\.safetensors"):
        weights_at("weights/none.safetensors")


def test_the_mean_of_two_networks_states_both_trainings(kept: Path, data: Dataset, tmp_path: Path) -> None:
    runs = [tmp_path / name for name in ("a", "b")]
    for run, seed in zip(runs, (1, 2), strict=True):
        train(recipe(run.name, init=str(kept), seed=seed), data, runs=tmp_path)
        keep_run(run, run.with_suffix(".safetensors"), data)
    files = [run.with_suffix(".safetensors") for run in runs]
    first, second = (load_file(file) for file in files)
    stated = averaged(files[0], files[1:])
    found, network = load_kept(files[0], ModelSpec(width=8), data)
    assert found == stated
    for name, tensor in network.state_dict().items():
        wanted = (first[name] + second[name]) / 2 if tensor.is_floating_point() else first[name]
        torch.testing.assert_close(tensor, wanted, rtol=0, atol=0)
    assert [each["recipe"]["name"] for each in stated.history] == ["toy", "a", "b"]  # what both started from comes once
    assert stated.totals[0] == 3


def test_a_mean_with_another_network_is_refused(kept: Path, data: Dataset, tmp_path: Path) -> None:
    network = load_kept(kept, None, data)[1]
    other = read_kept(kept).model_copy(update={"groups": {}})
    write_kept(tmp_path / "other.safetensors", dict(network.state_dict()), other)
    with pytest.raises(TrainingError, match="another model or of other splits"):
        averaged(tmp_path / "other.safetensors", [kept])


def test_a_run_that_starts_from_a_run_states_it(data: Dataset, tmp_path: Path) -> None:
    train(recipe("first"), data, runs=tmp_path)
    train(recipe("second", init="first"), data, runs=tmp_path)
    stated = keep_run(tmp_path / "second", tmp_path / "second.safetensors", data)
    assert [each["recipe"]["name"] for each in stated.history] == ["first", "second"]
