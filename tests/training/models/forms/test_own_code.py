"""Networks that a user's function returns: what does not fit is said in one sentence."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from training.errors import TrainingError
from training.models import ModelSpec, build_model
from training.models.adapted import Adapted
from training.models.network import Network
from training.models.resnet import SmallResNet

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
