from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from tests.training.toy import CLASSES, gratings, toy_dataset
from training.data.dataset import Dataset
from training.errors import TrainingError
from training.imaging.pixels import to_tensor
from training.loop.runs import load_run, settled
from training.loop.selection import accuracy
from training.loop.trainer import Trainer
from training.models.resnet import SmallResNet
from training.recipes.training import Recipe, Stage

PENALTIES = {
    "name": "penalties",
    "epochs": 2,
    "lr": 0.01,
    "batchnorm": "frozen",
    "adversary": {"eps": 4, "steps": 2, "clean_weight": 0.5},
    "mask_augmentation": {},
    "terms": {
        "jacobian": {"weight": 0.001},
        "selective": {"weight": 0.01, "grid": 4},
        "sns": {"weight": 0.1, "pairs": 16},
    },
}


def recipe(**changes: Any) -> Recipe:
    content: dict[str, Any] = {
        "name": "toy",
        "data": {"source": "npz:toy"},
        "model": {"width": 4},
        "batch": 32,
        "ema": 0.9,
        "stages": [{"name": "standard", "epochs": 2, "lr": 0.05}, PENALTIES],
    }
    return Recipe.model_validate(content | changes)


PLAIN = [{"name": "standard", "epochs": 3, "lr": 0.05}]


@pytest.fixture(scope="module")
def data() -> Dataset:
    return toy_dataset(train=96)


class Killed(Exception):
    pass


def kill_after(epochs: int):
    """A report that dies in the middle of an epoch, once `epochs` of this process are saved."""
    seen = []

    def report(event: dict[str, Any]) -> None:
        if "epoch" in event:
            seen.append(event["epoch"])
        elif len(seen) == epochs and event["batch"] == 2:
            raise Killed

    return report


def same(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_killed_and_resumed_run_ends_with_the_same_bits(
    data: Dataset, trained: SmallResNet, tmp_path: Path, precision: str
) -> None:
    """Killed three times: inside the first stage, at the start of the second and inside it."""
    whole = Trainer(recipe(precision=precision), data, tmp_path / "whole", teacher=trained).run()
    for epoch in (1, 2, 3):
        with pytest.raises(Killed):
            Trainer(recipe(precision=precision), data, tmp_path / "killed", teacher=trained).run(kill_after(1))
        saved = json.loads((tmp_path / "killed" / "checkpoint.json").read_text("utf-8"))
        assert saved["epoch"] == epoch
        assert not (tmp_path / "killed" / "weights.safetensors").exists()
    resumed = Trainer(recipe(precision=precision), data, tmp_path / "killed", teacher=trained).run()
    assert same(resumed, whole)
    logs = [json.loads((tmp_path / run / "checkpoint.json").read_text("utf-8")) for run in ("whole", "killed")]
    assert logs[0] == logs[1]


def test_a_stage_behind_worst_masks_runs(data: Dataset, tmp_path: Path) -> None:
    stage = {"name": "masks", "epochs": 1, "lr": 0.01, "worst_masks": {"masks_per_axis": 2, "fraction": 0.25}}
    Trainer(recipe(stages=[stage], ema=0), data, tmp_path).run()
    (epoch,) = json.loads((tmp_path / "checkpoint.json").read_text("utf-8"))["history"]
    assert (epoch["stage"], epoch["loss"]) == ("masks", epoch["ce"])


def reranked(every: int | None) -> list[dict[str, Any]]:
    sns = {"weight": 1.0, "pairs": 16} | ({} if every is None else {"rerank_epochs": every})
    return [
        {
            "name": "sns",
            "epochs": 4,
            "lr": 0.05,
            "batchnorm": "frozen",
            "adversary": {"eps": 4, "steps": 1},
            "terms": {"sns": sns},
        }
    ]


@pytest.mark.parametrize(("every", "change"), [(None, 1), (2, 2), (9, None)])
def test_neurons_are_ranked_again_every_so_many_epochs(
    data: Dataset, trained: SmallResNet, tmp_path: Path, every: int | None, change: int | None
) -> None:
    """A channel of the stem dies after the first epoch: the most sensitive one of all, once neurons are ranked again.

    `change` is the epoch (from 0) of the first ranking after that.
    """
    trainer = Trainer(recipe(stages=reranked(every)), data, tmp_path, init=trained)
    told: list[int] = []

    def report(event: dict[str, Any]) -> None:
        if "epoch" not in event:
            return
        (channel,) = trainer.sensitive["stem"].tolist()
        told.append(channel)
        if len(told) == 1:
            with torch.no_grad():
                trainer.model.get_parameter("stem.1.bias")[(channel + 1) % 4] = -100.0

    trainer.run(report)
    first, dead = told[0], (told[0] + 1) % 4
    assert told == [first if change is None or epoch < change else dead for epoch in range(4)]


def test_a_run_resumed_between_two_rankings_ends_with_the_same_bits(
    data: Dataset, trained: SmallResNet, tmp_path: Path
) -> None:
    stages = reranked(3)
    whole = Trainer(recipe(stages=stages), data, tmp_path / "whole", init=trained).run()
    for _ in range(2):
        with pytest.raises(Killed):
            Trainer(recipe(stages=stages), data, tmp_path / "killed", init=trained).run(kill_after(1))
    (checkpoint,) = (tmp_path / "killed").glob("checkpoint-2.safetensors")
    assert "sensitive/stage3" in load_file(checkpoint)
    assert same(Trainer(recipe(stages=stages), data, tmp_path / "killed", init=trained).run(), whole)
    every = Trainer(recipe(stages=reranked(1)), data, tmp_path / "every", init=trained).run()
    assert not same(every, whole)  # the neurons ranked after the first epoch are others


def test_seed_decides_the_weights(data: Dataset, tmp_path: Path) -> None:
    a, b, c = (
        Trainer(recipe(stages=PLAIN, seed=seed), data, tmp_path / name).run()
        for name, seed in (("a", 0), ("b", 0), ("c", 1))
    )
    assert same(a, b)
    assert not same(a, c)
    assert float.fromhex("0x1p-1040") * 1.0 > 0.0  # arithmetic is as it was before


def test_it_learns_and_reports(toy: Dataset, tmp_path: Path) -> None:
    events: list[dict[str, Any]] = []
    stages = [{"name": "standard", "epochs": 8, "lr": 0.1}]
    network = Trainer(recipe(stages=stages, ema=0.5), toy, tmp_path).run(events.append)
    assert accuracy(network, toy.test) > 0.6  # chance is 0.25
    assert not network.training
    epochs = [e for e in events if "epoch" in e]
    assert [e["epoch"] for e in epochs] == list(range(1, 9))
    assert epochs[-1]["loss"] < epochs[0]["loss"]
    assert epochs[-1]["select_clean"] == accuracy(network, toy.select)
    assert len([e for e in events if "batch" in e]) == 8 * (len(toy.train) // 32)


def test_every_term_is_reported(data: Dataset, trained: SmallResNet, tmp_path: Path) -> None:
    events: list[dict[str, Any]] = []
    Trainer(recipe(stages=[PENALTIES]), data, tmp_path, teacher=trained, init=trained).run(events.append)
    last = [e for e in events if "epoch" in e][-1]
    parts = ("ce_adv", "ce_clean", "jacobian", "selective", "sns")
    assert all(last[name] > 0 for name in parts)
    assert last["loss"] == pytest.approx(sum(last[name] for name in parts), rel=1e-4)


def test_run_folder_holds_weights_recipe_data_and_no_pickles(
    data: Dataset, trained: SmallResNet, tmp_path: Path
) -> None:
    network = Trainer(recipe(), data, tmp_path, teacher=trained).run()
    files = sorted(p.name for p in tmp_path.iterdir())
    assert files == [
        "checkpoint-4.safetensors",
        "checkpoint.json",
        "data.json",
        "environment.json",
        "metrics.csv",
        "outcome.json",
        "recipe.json",
        "weights.safetensors",
    ]
    for path in tmp_path.iterdir():
        if path.suffix == ".safetensors":
            load_file(path)  # tensors and nothing else
        elif path.suffix == ".json":
            json.loads(path.read_text("utf-8"))
    loaded_recipe, loaded = load_run(tmp_path, data)
    assert loaded_recipe == settled(recipe(), tmp_path, device="cpu")  # the precision that `auto` was
    assert loaded_recipe.precision in ("fp32", "bf16")
    x = to_tensor(data.test.x)
    with torch.no_grad():
        torch.testing.assert_close(loaded(x), network(x))


def test_unfinished_run_is_not_loaded(data: Dataset, tmp_path: Path) -> None:
    with pytest.raises(Killed):
        Trainer(recipe(stages=PLAIN), data, tmp_path).run(kill_after(1))
    with pytest.raises(TrainingError, match="not a finished run"):
        load_run(tmp_path, data)


def test_finished_run_does_not_train_again(data: Dataset, tmp_path: Path) -> None:
    first = Trainer(recipe(stages=PLAIN), data, tmp_path).run()
    events: list[dict[str, Any]] = []
    assert same(Trainer(recipe(stages=PLAIN), data, tmp_path).run(events.append), first)
    assert events == []


def test_a_run_on_other_splits_is_not_loaded(data: Dataset, tmp_path: Path) -> None:
    """Not as a finished run, nor as a start or teacher: its training images may be calibration images here."""
    Trainer(recipe(stages=[PLAIN[0] | {"epochs": 1}]), data, tmp_path / "run").run()
    assert load_run(tmp_path / "run", data)[0].name == "toy"
    swapped = replace(data, train=data.calibrate, calibrate=data.train)
    with pytest.raises(TrainingError, match="other data or splits"):
        load_run(tmp_path / "run", swapped)


def test_folder_of_another_recipe_is_refused(data: Dataset, tmp_path: Path) -> None:
    Trainer(recipe(stages=PLAIN), data, tmp_path).run()
    before = (tmp_path / "weights.safetensors").read_bytes()
    with pytest.raises(TrainingError, match="another recipe"):
        Trainer(recipe(stages=PLAIN, weight_decay=0.1), data, tmp_path).run()
    assert (tmp_path / "weights.safetensors").read_bytes() == before


def test_loss_that_is_not_finite_stops_the_run(data: Dataset, tmp_path: Path) -> None:
    trainer = Trainer(recipe(stages=PLAIN), data, tmp_path)
    with torch.no_grad():
        trainer.model.get_parameter("head.weight").fill_(float("nan"))
    with pytest.raises(TrainingError, match=r"not finite in stage standard, step 1: loss, ce, gradient; lower `lr`"):
        trainer.run()
    assert not (tmp_path / "weights.safetensors").exists()
    assert not (tmp_path / "checkpoint.json").exists()


def test_selective_term_needs_a_teacher(data: Dataset, tmp_path: Path) -> None:
    stage = {
        "name": "s",
        "epochs": 1,
        "lr": 0.01,
        "batchnorm": "frozen",
        "terms": {"selective": {"weight": 1, "grid": 4}},
    }
    with pytest.raises(TrainingError, match="teacher"):
        Trainer(recipe(stages=[stage]), data, tmp_path).run()


def test_teacher_is_left_alone_and_its_maps_are_kept(data: Dataset, trained: SmallResNet, tmp_path: Path) -> None:
    before = {name: value.clone() for name, value in trained.state_dict().items()}
    Trainer(recipe(stages=[PENALTIES]), data, tmp_path / "run", teacher=trained, init=trained).run()
    assert all(torch.equal(before[name], value) for name, value in trained.state_dict().items())
    (maps,) = (tmp_path / ".cache").glob("teacher-maps-4-*.safetensors")
    assert load_file(maps)["maps"].shape == (len(data.train), 4, 4)


def test_frozen_stage_keeps_running_statistics(data: Dataset, trained: SmallResNet, tmp_path: Path) -> None:
    network = Trainer(recipe(stages=[PENALTIES]), data, tmp_path, teacher=trained, init=trained).run()
    for (name, mine), theirs in zip(network.named_buffers(), trained.buffers(), strict=True):
        assert torch.equal(mine, theirs) or "running" not in name
    assert not torch.equal(network.get_parameter("head.weight"), trained.head.weight)


def test_average_without_decay_is_the_network(data: Dataset, tmp_path: Path) -> None:
    trainer = Trainer(recipe(stages=PLAIN, ema=0.0), data, tmp_path)
    assert same(trainer.run(), trainer.model)
    trainer = Trainer(recipe(stages=PLAIN, ema=0.9), data, tmp_path / "ema")
    assert not same(trainer.run(), trainer.model)


def test_normalisation_is_of_the_training_pixels(data: Dataset, tmp_path: Path) -> None:
    trainer = Trainer(recipe(), data, tmp_path)
    x = trainer.model.get_submodule("normalise")(to_tensor(data.train.x))
    torch.testing.assert_close(x.mean((0, 2, 3)), torch.zeros(3), atol=1e-4, rtol=0)
    torch.testing.assert_close(x.std((0, 2, 3)), torch.ones(3), atol=1e-3, rtol=0)


def test_to_tensor_and_accuracy_in_closed_form() -> None:
    x = np.zeros((2, 2, 3, 3), np.uint8)
    x[1, 0, 2] = [255, 51, 0]
    tensor = to_tensor(x)
    assert tensor.shape == (2, 3, 2, 3)
    torch.testing.assert_close(tensor[1, :, 0, 2], torch.tensor([1.0, 0.2, 0.0]))
    split = gratings(10, seed=0)

    class Always(nn.Module):
        def forward(self, z: torch.Tensor) -> torch.Tensor:
            return torch.eye(CLASSES)[1].expand(len(z), CLASSES)

    assert accuracy(Always(), split, batch=4) == pytest.approx((split.y == 1).mean())


def test_average_in_closed_form_with_batchnorm_statistics(data: Dataset, tmp_path: Path) -> None:
    """After every step: average = 0.75 average + 0.25 network, of weights and running statistics alike."""
    trainer = Trainer(recipe(stages=PLAIN, ema=0.75), data, tmp_path)
    before = {name: value.clone() for name, value in trainer.average.state_dict().items()}
    with torch.no_grad():
        for value in trainer.model.state_dict().values():
            value.add_(1)
    trainer._update_average()
    for name, value in trainer.average.state_dict().items():
        gain = 0.25 if value.is_floating_point() else 1
        torch.testing.assert_close(value, before[name] + gain, msg=name)


@pytest.mark.parametrize("metric", ["clean", "pgd"])
def test_early_stopping_keeps_the_best_average(
    data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, metric: str
) -> None:
    """Watched 0.5, 0.7, 0.6, 0.7: two epochs without gain end the last stage, also of a run that was killed."""
    stages = [{"name": "a", "epochs": 1, "lr": 0.05}, {"name": "b", "epochs": 9, "lr": 0.05}]
    told = dict(zip(range(1, 10), [0.5, 0.7, 0.6, 0.7, 0.9], strict=False))
    averages = {}

    def measured(self: Trainer, stage: Stage, number: int) -> dict[str, float]:
        averages[number] = {name: value.clone() for name, value in self.average.state_dict().items()}
        real = evaluate(self, stage, number)
        assert ("watched" in real) == (number > 0)
        return real | ({"watched": told[number]} if number > 0 else {})

    evaluate = Trainer._evaluate
    monkeypatch.setattr(Trainer, "_evaluate", measured)
    changes = {"stages": stages, "early_stopping": {"metric": metric, "images": 8, "patience": 2, "steps": 1}}
    with pytest.raises(Killed):
        Trainer(recipe(**changes), data, tmp_path).run(kill_after(3))
    made = Trainer(recipe(**changes), data, tmp_path).run()
    assert max(averages) == 4
    assert all(torch.equal(value, averages[2][name]) for name, value in made.state_dict().items())
    assert all(
        torch.equal(value, averages[2][name]) for name, value in load_file(tmp_path / "weights.safetensors").items()
    )
    outcome = json.loads((tmp_path / "outcome.json").read_text("utf-8"))
    assert (outcome["epochs"], outcome["kept_epoch"], outcome["stopped_early"]) == (5, 3, True)
    starts = json.loads((tmp_path / "environment.json").read_text("utf-8"))
    assert [start["after_epoch"] for start in starts] == [0, 3]


def test_fp16_trains_on_and_keeps_its_loss_scale(data: Dataset, tmp_path: Path) -> None:
    Trainer(recipe(stages=[PLAIN[0] | {"epochs": 1, "awp": {}}], precision="fp16"), data, tmp_path).run()
    state = json.loads((tmp_path / "checkpoint.json").read_text("utf-8"))
    assert state["scaler"]["scale"] > 0
    assert state["history"][0]["loss"] < 2


def test_a_run_folder_of_an_older_recipe_is_resumed_and_loaded(data: Dataset, tmp_path: Path) -> None:
    """recipe.json without the keys that came later, no data.json, teacher maps of old in the folder."""
    Trainer(recipe(stages=[PLAIN[0] | {"epochs": 1}]), data, tmp_path).run()
    path = tmp_path / "recipe.json"
    content = json.loads(path.read_text("utf-8"))
    del content["early_stopping"], content["stages"][0]["trades"], content["stages"][0]["awp"]
    path.write_text(json.dumps(content, indent=1), "utf-8")
    for name in ("data.json", "environment.json", "outcome.json", "metrics.csv"):
        (tmp_path / name).unlink()
    assert load_run(tmp_path, data)[0] == settled(recipe(stages=[PLAIN[0] | {"epochs": 1}]), tmp_path, device="cpu")
    Trainer(recipe(stages=[PLAIN[0] | {"epochs": 1}]), data, tmp_path).run()
