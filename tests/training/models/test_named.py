"""Architectures by name, and weights files: what does not fit is said in one sentence."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from tests.training.models.test_adapted import Stages
from training.errors import TrainingError
from training.models import ModelSpec, build_model
from training.models.adapted import Adapted
from training.models.network import Network
from training.models.resnet import SmallResNet
from training.models.weights import fill

MODULE = """
from tests.training.models.test_adapted import Stages
from training.models import ModelSpec, build_model

def network(num_classes):
    return Stages(num_classes)

def fixed():
    return Stages(3)

def ours(num_classes):
    return build_model(ModelSpec(width=4), classes=num_classes, mean=[0.0] * 3, std=[1.0] * 3)

def broken():
    raise OSError("no such table")

number = 7

def words():
    return "a network"
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "palisade_test_nets.py").write_text(MODULE)
    monkeypatch.syspath_prepend(str(tmp_path))
    return "palisade_test_nets"


def made(arch: str, classes: int = 3) -> Network:
    return build_model(ModelSpec(arch=arch), classes=classes, mean=[0.5] * 3, std=[0.2] * 3, side=16)


def test_own_code(module: str) -> None:
    assert isinstance(made(f"{module}:network"), Adapted)
    assert made(f"{module}:network", classes=9)(torch.rand(1, 3, 16, 16)).shape == (1, 9)
    assert made(f"{module}:fixed")(torch.rand(1, 3, 16, 16)).shape == (1, 3)
    assert isinstance(made(f"{module}:ours"), SmallResNet)


@pytest.mark.parametrize(
    ("arch", "message"),
    [
        ("torchvision:resnet81", "has no network 'resnet81'; did you mean resnet"),
        ("palisade_nowhere:network", "no module 'palisade_nowhere' is found from"),
        ("palisade_test_nets:absent", "has no 'absent'"),
        ("palisade_test_nets:broken", "calling broken raised OSError: no such table"),
        ("palisade_test_nets:number", "a int cannot be called"),
        ("palisade_test_nets:words", "gave a str, not a torch.nn.Module"),
    ],
)
def test_what_cannot_be_made_is_told(module: str, arch: str, message: str) -> None:
    with pytest.raises(TrainingError, match=message):
        made(arch)


def test_a_module_that_fails_to_import_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "palisade_test_torn.py").write_text("import palisade_not_installed\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(TrainingError, match="no module 'palisade_not_installed'"):
        made("palisade_test_torn:network")


def test_a_file_is_named_whatever_its_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "training"
    folder.mkdir()
    (folder / "nets.py").write_text("import palisade_test_near\n" + MODULE)
    (folder / "palisade_test_near.py").write_text("")
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.chdir(tmp_path)
    assert made("training/nets.py:network", classes=4)(torch.rand(1, 3, 16, 16)).shape == (1, 4)
    assert isinstance(made(f"{folder}/nets.py:ours"), SmallResNet)
    with pytest.raises(
        TrainingError, match=r"another package is called 'training' and hides training/nets\.py; name the file: "
    ) as told:
        made("training.nets:network")
    assert str(told.value).endswith("training/nets.py:network")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no file palisade_lost.py is found from"),
        ("import palisade_not_installed", "no module 'palisade_not_installed' is found from"),
        ("raise SystemExit(3)", r"importing it called exit\(3\)"),
        ("def network(:", "importing it raised SyntaxError"),
        ("number.more", "importing it raised NameError"),
        ("import sys\nsys.more", "importing it raised AttributeError"),
        ("", "has no 'network'"),
    ],
)
def test_a_file_that_cannot_be_used_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str | None, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    if content is not None:
        Path("palisade_lost.py").write_text(content)
    with pytest.raises(TrainingError, match=message) as told:
        made("palisade_lost.py:network")
    assert "\n" not in str(told.value)


def test_an_architecture_is_ours_or_has_a_colon() -> None:
    with pytest.raises(ValueError, match="unknown architecture; use small_resnet"):
        ModelSpec(arch="resnet18")


@pytest.fixture
def network() -> Adapted:
    torch.manual_seed(0)
    return Adapted(Stages(3), classes=3, mean=[0.5] * 3, std=[0.2] * 3, side=16)


@pytest.mark.parametrize(
    "prefix",
    ["", "module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module.model.", "module._orig_mod.model.net."],
)
def test_weights_as_others_save_them(network: Adapted, tmp_path: Path, prefix: str) -> None:
    other, path = Stages(3), tmp_path / "weights.safetensors"
    half = {prefix + name: t.half() if t.is_floating_point() else t for name, t in other.state_dict().items()}
    save_file(half, path)
    fill(network, path, classes=3)
    assert torch.equal(network.get_parameter("body.head.weight"), other.head.weight.half().float())
    assert network.normalise.mean.flatten().tolist() == [0.5] * 3


@pytest.mark.parametrize(
    "names",
    [
        lambda name: f"module.{name.replace('stem.', 'stem._orig_mod.')}",
        lambda name: name.replace("middle.0.", "middle.0._fsdp_wrapped_module._checkpoint_wrapped_module."),
        lambda name: "model." + name.replace("late.", "late.module."),
    ],
)
def test_weights_of_wrapped_parts(network: Adapted, tmp_path: Path, names: Callable[[str], str]) -> None:
    other, path = Stages(3), tmp_path / "weights.safetensors"
    save_file({names(name): t for name, t in other.state_dict().items()} | {"n_averaged": torch.tensor(5)}, path)
    fill(network, path, classes=3)
    assert all(torch.equal(mine, other.state_dict()[name]) for name, mine in network.body.state_dict().items())


def test_weights_of_our_own_runs_in_a_wrapper(network: Adapted, tmp_path: Path) -> None:
    other, path = Adapted(Stages(3), classes=3, mean=[0.1] * 3, std=[0.3] * 3, side=16), tmp_path / "run.safetensors"
    save_file({"module._orig_mod." + name: t for name, t in other.state_dict().items()}, path)
    fill(network, path, classes=3)
    assert network.normalise.mean.flatten().tolist() == pytest.approx([0.1] * 3)


def test_weights_of_our_own_runs_bring_their_normalisation(network: Adapted, tmp_path: Path) -> None:
    other, path = Adapted(Stages(3), classes=3, mean=[0.1] * 3, std=[0.3] * 3, side=16), tmp_path / "run.safetensors"
    save_file(other.state_dict(), path)
    fill(network, path, classes=3)
    x = torch.rand(2, 3, 16, 16)
    assert torch.equal(network.eval()(x), other.eval()(x))


def test_weights_that_do_not_fit_are_told(network: Adapted, tmp_path: Path) -> None:
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
