"""Weights files: as others save them, and what is said where they do not fit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from tests.training.models.test_adapted import Stages
from training.errors import TrainingError
from training.models.adapted import Adapted
from training.models.forms.weights import fill


@pytest.fixture
def network() -> Stages:
    torch.manual_seed(0)
    return Stages(3)


@pytest.mark.parametrize(
    "prefix",
    ["", "module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module.model.", "module._orig_mod.model.net."],
)
def test_weights_as_others_save_them(network: Stages, tmp_path: Path, prefix: str) -> None:
    other, path = Stages(3), tmp_path / "weights.safetensors"
    half = {prefix + name: t.half() if t.is_floating_point() else t for name, t in other.state_dict().items()}
    save_file(half, path)
    assert fill(network, path, classes=3) is None
    assert torch.equal(network.head.weight, other.head.weight.half().float())


@pytest.mark.parametrize(
    "names",
    [
        lambda name: f"module.{name.replace('stem.', 'stem._orig_mod.')}",
        lambda name: name.replace("middle.0.", "middle.0._fsdp_wrapped_module._checkpoint_wrapped_module."),
        lambda name: "model." + name.replace("late.", "late.module."),
    ],
)
def test_weights_of_wrapped_parts(network: Stages, tmp_path: Path, names: Callable[[str], str]) -> None:
    other, path = Stages(3), tmp_path / "weights.safetensors"
    save_file({names(name): t for name, t in other.state_dict().items()} | {"n_averaged": torch.tensor(5)}, path)
    fill(network, path, classes=3)
    assert all(torch.equal(mine, other.state_dict()[name]) for name, mine in network.state_dict().items())


def test_weights_of_our_own_runs_in_a_wrapper(network: Stages, tmp_path: Path) -> None:
    other, path = Adapted(Stages(3), classes=3, mean=[0.1] * 3, std=[0.3] * 3, side=16), tmp_path / "run.safetensors"
    save_file({"module._orig_mod." + name: t for name, t in other.state_dict().items()}, path)
    found = fill(network, path, classes=3)
    assert found is not None
    assert found[0] == pytest.approx([0.1] * 3)


def test_weights_of_our_own_runs_bring_their_normalisation(network: Stages, tmp_path: Path) -> None:
    other, path = Adapted(Stages(3), classes=3, mean=[0.1] * 3, std=[0.3] * 3, side=16), tmp_path / "run.safetensors"
    save_file(other.state_dict(), path)
    found = fill(network, path, classes=3)
    assert found is not None
    assert found[1] == pytest.approx([0.3] * 3)
    x = torch.rand(2, 3, 16, 16)
    assert torch.equal(network.eval()(other.normalise(x)), other.eval()(x))


def test_weights_that_do_not_fit_are_told(network: Stages, tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"

    def told(content: dict[str, torch.Tensor] | bytes) -> str:
        path.write_bytes(content) if isinstance(content, bytes) else save_file(content, path)
        with pytest.raises(TrainingError) as raised:
            fill(network, path, classes=3)
        return str(raised.value)

    assert "answers with 10 classes (head.weight), the data have 3" in told(
        {name: t for name, t in Stages(10).state_dict().items() if name != "head.bias"} | {"head.bias": torch.zeros(3)}
    )
    wider = Stages(3)
    wider.head = nn.Linear(9, 3)
    assert "not of this architecture: head.weight is (3, 9), not (3, 8)" in told(wider.state_dict())
    assert "lacks 1 tensors, such as head.bias" in told(
        {name: t for name, t in Stages(3).state_dict().items() if name != "head.bias"}
    )
    assert "has 1 others, such as more" in told(Stages(3).state_dict() | {"more": torch.zeros(1)})
    assert "not a safetensors file" in told(b"\x80\x02}q\x00.")
    path.unlink()
    with pytest.raises(TrainingError, match="no such file"):
        fill(network, path, classes=3)
