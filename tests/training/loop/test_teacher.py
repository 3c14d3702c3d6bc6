from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import save_file
from torch import Tensor

import training.loop.teacher
from tests.training.toy import random_network, toy_dataset
from training.imaging.pixels import to_tensor
from training.loop.teacher import Teacher, mixed, teacher_maps
from training.loop.trainer import Trainer
from training.recipes.training import Recipe
from training.util.module_modes import seeded
from training.util.processes import open_fabric

DATA = toy_dataset(train=32)
X, Y = to_tensor(DATA.train.x[:8]), torch.from_numpy(DATA.train.y[:8])


# Soft labels.


def test_targets_are_between_the_teacher_s_labels_and_the_true_ones() -> None:
    soft, true = torch.softmax(torch.randn(8, 4, generator=seeded(0)), 1), torch.eye(4)[Y]
    torch.testing.assert_close(mixed(0.5, soft, Y), (soft + true) / 2)
    torch.testing.assert_close(mixed(1, soft, Y), soft)


def test_soft_labels_are_the_teacher_s_on_both_views() -> None:
    network = random_network(0).eval()
    teacher = Teacher(network, open_fabric(precision="fp32"), "fp32")
    with torch.no_grad():
        plain, mirrored = network(X), network(X.flip(3))
    found = teacher.soft_labels(DATA.train.x[:8], temperature=2, flip=False, batch=3)
    torch.testing.assert_close(found, torch.softmax(plain / 2, 1))
    found = teacher.soft_labels(DATA.train.x[:8], temperature=1, flip=True)
    torch.testing.assert_close(found, (torch.softmax(plain, 1) + torch.softmax(mirrored, 1)) / 2)


def recipe(**stage: Any) -> Recipe:
    return Recipe.model_validate(
        {
            "name": "taught",
            "data": {"source": "toy"},
            "model": {"arch": "small_resnet", "width": 8, "blocks": [1, 1, 1]},
            "teacher": "before",
            "batch": 16,
            "precision": "fp32",
            "stages": [{"name": "one", "epochs": 6, "lr": 0.1} | stage],
        }
    )


def test_soft_labels_without_a_teacher_are_refused() -> None:
    stages = [{"name": "one", "epochs": 1, "lr": 0.01, "soft_labels": {"share": 0.5}}]
    with pytest.raises(ValidationError, match="name it"):
        Recipe.model_validate({"name": "a", "data": {"source": "toy"}, "stages": stages})


@pytest.mark.parametrize(
    "attack", [{}, {"adversary": {"steps": 1, "clean_weight": 0.5}}, {"trades": {"steps": 1, "beta": 0.5}}], ids=str
)
def test_every_kind_of_training_follows_the_teacher(attack: dict[str, Any], tmp_path: Path) -> None:
    """A teacher that knows nothing, whose labels are the whole target, leaves the network as unsure as itself."""

    class Unsure(torch.nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.zeros(len(x), len(DATA.classes))

    losses = {}
    for share in (None, 1.0):
        wanted = recipe(**attack, soft_labels=None if share is None else {"share": share})
        trainer = Trainer(wanted, DATA, tmp_path / str(share), teacher=Unsure())
        network = trainer.run()
        with torch.no_grad():
            losses[share] = float(-torch.log_softmax(network(X), 1).mean())
    assert losses[1.0] < losses[None]


# The teacher's maps.


def maps(cache: Path, **changes: Any) -> Tensor:
    settings: dict[str, Any] = {
        "teacher": random_network(0),
        "x": DATA.train.x[:6],
        "grid": 2,
        "precision": "fp32",
    } | changes
    return teacher_maps(settings.pop("teacher"), settings.pop("x"), cache=cache, **settings)


def test_maps_tell_how_far_they_are(tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    maps(tmp_path, x=DATA.train.x[:520], progress=lambda done, total: told.append((done, total)))
    total = len(DATA.train.x[:520])
    assert told[-1] == (total, total)
    assert [done for done, _ in told] == sorted({done for done, _ in told})


def test_maps_are_computed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = maps(tmp_path / "new" / "cache")
    assert first.shape == (6, 2, 2)
    assert len(list((tmp_path / "new" / "cache").iterdir())) == 1
    monkeypatch.setattr(training.loop.teacher, "perturbation_saliency", None)
    assert torch.equal(maps(tmp_path / "new" / "cache"), first)


def test_other_teacher_data_or_settings_have_maps_of_their_own(tmp_path: Path) -> None:
    changes: list[dict[str, Any]] = [
        {},
        {"teacher": random_network(1)},
        {"x": DATA.train.x[6:12]},
        {"grid": 4},
        {"precision": "bf16"},
    ]
    for count, change in enumerate(changes, 1):
        maps(tmp_path, **change)
        assert len(list(tmp_path.iterdir())) == count


@pytest.mark.parametrize("damage", ["cut", "empty", "noise", "shape", "other", "nan"])
def test_a_corrupt_file_is_written_anew(damage: str, tmp_path: Path) -> None:
    right = maps(tmp_path)
    (path,) = tmp_path.iterdir()
    content = path.read_bytes()
    if damage == "shape":
        save_file({"maps": right[:5]}, path)
    elif damage == "other":
        save_file({"map": right}, path)
    elif damage == "nan":
        save_file({"maps": right * math.nan}, path)
    else:
        path.write_bytes({"cut": content[:-9], "empty": b"", "noise": np.random.default_rng(0).bytes(80)}[damage])
    assert torch.equal(maps(tmp_path), right)
    assert path.read_bytes() == content
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_is_whole_or_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, tensors: dict[str, Tensor]) -> None:
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(training.loop.teacher, "write_tensors", full)
    with pytest.raises(OSError, match="No space"):
        maps(tmp_path)
    monkeypatch.undo()
    right = maps(tmp_path)
    assert torch.equal(maps(tmp_path), right)
