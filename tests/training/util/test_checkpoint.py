from __future__ import annotations

import copy
import json
import resource
import signal
from pathlib import Path

import pytest
import torch
from torch import nn, optim

from tests.training.toy import random_network
from training.errors import TrainingError
from training.models.resnet import SmallResNet
from training.util.checkpoint import Progress, load_checkpoint, load_weights, save_checkpoint, save_weights, write_text

HISTORY = [{"stage": "a", "loss": 0.5}, {"stage": "a", "loss": 0.25}]


def stepped(seed: int) -> tuple[SmallResNet, SmallResNet, optim.SGD]:
    """A network after one step, with momentum, and an average that differs from it."""
    network = random_network(seed, width=8).to(memory_format=torch.channels_last)
    average = copy.deepcopy(network)
    optimizer = optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
    network(torch.rand(4, 3, 16, 16)).square().sum().backward()
    optimizer.step()
    return network, average, optimizer


def save(folder: Path, seed: int = 0, epoch: int = 2) -> tuple[SmallResNet, SmallResNet, optim.SGD]:
    network, average, optimizer = stepped(seed)
    progress = Progress(epoch, HISTORY)
    save_checkpoint(folder, networks={"model": network, "average": average}, optimizer=optimizer, progress=progress)
    return network, average, optimizer


def load(folder: Path, network: nn.Module) -> tuple[Progress | None, nn.Module, optim.SGD]:
    average = copy.deepcopy(network)
    optimizer = optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
    networks = {"model": network, "average": average}
    return load_checkpoint(folder, networks=networks, optimizer=optimizer), average, optimizer


def same(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def test_round_trip(tmp_path: Path) -> None:
    saved = save(tmp_path)
    network = random_network(9, width=8)
    progress, average, optimizer = load(tmp_path, network)
    assert progress == Progress(2, HISTORY)
    assert same(network, saved[0])
    assert same(average, saved[1])
    assert not same(network, average)
    for mine, theirs in zip(network.parameters(), saved[0].parameters(), strict=True):
        buffer = saved[2].state[theirs]["momentum_buffer"]
        assert buffer.abs().sum() > 0
        assert torch.equal(optimizer.state[mine]["momentum_buffer"], buffer)


def test_no_checkpoint_is_none(tmp_path: Path) -> None:
    assert load(tmp_path, random_network(0, width=8))[0] is None


def test_the_latest_replaces_the_earlier(tmp_path: Path) -> None:
    save(tmp_path, 0, 1)
    latest = save(tmp_path, 1, 2)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["checkpoint-2.safetensors", "checkpoint.json"]
    network = random_network(9, width=8)
    load(tmp_path, network)
    assert same(network, latest[0])


def test_interrupted_write_leaves_the_earlier_one_usable(tmp_path: Path) -> None:
    saved = save(tmp_path, 0, 1)
    (tmp_path / "checkpoint-2.safetensors.part").write_bytes(b"half")
    network = random_network(9, width=8)
    progress, _, _ = load(tmp_path, network)
    assert progress is not None
    assert progress.epoch == 1
    assert same(network, saved[0])


def truncate(folder: Path) -> None:
    path = folder / "checkpoint-2.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def empty(folder: Path) -> None:
    (folder / "checkpoint-2.safetensors").write_bytes(b"")


def remove(folder: Path) -> None:
    (folder / "checkpoint-2.safetensors").unlink()


def not_json(folder: Path) -> None:
    (folder / "checkpoint.json").write_text('{"tensors": "check', "utf-8")


def no_epoch(folder: Path) -> None:
    (folder / "checkpoint.json").write_text(json.dumps({"tensors": "checkpoint-2.safetensors"}), "utf-8")


def a_list(folder: Path) -> None:
    (folder / "checkpoint.json").write_text("[]", "utf-8")


@pytest.mark.parametrize("damage", [truncate, empty, remove, not_json, no_epoch, a_list])
def test_damaged_checkpoint_is_a_training_error(tmp_path: Path, damage) -> None:
    save(tmp_path)
    damage(tmp_path)
    with pytest.raises(TrainingError, match="cannot resume"):
        load(tmp_path, random_network(0, width=8))


def test_checkpoint_of_another_network_is_refused(tmp_path: Path) -> None:
    save(tmp_path)
    with pytest.raises(TrainingError, match="cannot resume"):
        load(tmp_path, random_network(0, classes=7, width=8))


def test_a_full_disk_is_said_and_the_earlier_checkpoint_stays(tmp_path: Path) -> None:
    """The system refuses to let any file grow beyond 8 KB, as a full disk would in the middle of one."""
    saved = save(tmp_path, 0, 1)
    before = sorted(p.name for p in tmp_path.iterdir())
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (8192, limits[1]))
        with pytest.raises(
            TrainingError, match=r"checkpoint-2\.safetensors: File too large; earlier checkpoints are intact"
        ):
            save(tmp_path, 1, 2)
        with pytest.raises(TrainingError, match=r"note\.json: File too large"):
            write_text(tmp_path / "note.json", "x" * 10_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert sorted(p.name for p in tmp_path.iterdir()) == before
    network = random_network(9, width=8)
    progress, _, _ = load(tmp_path, network)
    assert progress == Progress(1, HISTORY)
    assert same(network, saved[0])


def test_weights_round_trip_and_errors(tmp_path: Path) -> None:
    saved, network = random_network(0), random_network(1)
    path = tmp_path / "weights.safetensors"
    save_weights(path, saved)
    load_weights(path, network)
    assert same(network, saved)
    assert [p.name for p in tmp_path.iterdir()] == ["weights.safetensors"]
    with pytest.raises(TrainingError, match=r"weights\.safetensors"):
        load_weights(path, random_network(0, width=8))
    with pytest.raises(TrainingError, match=r"absent\.safetensors"):
        load_weights(tmp_path / "absent.safetensors", network)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(TrainingError, match=r"weights\.safetensors"):
        load_weights(path, network)
