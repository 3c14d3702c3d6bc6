from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torch import nn

from gateway.core.preprocessing import Preprocessing
from training.bundling.opening import network_of, open_named
from training.bundling.preprocessing import Wanted
from training.data.layouts import names_classes
from training.errors import PreprocessingError, TrainingError
from training.models.forms.opened import OpenedModel, Stated
from training.preprocessing.options import DEFAULT, Options
from training.recipes.training import DataSpec

CODE = """
from torch import nn

def make():
    layers = [nn.Conv2d(3, 4, 3, stride=2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5)]
    return nn.Sequential(*layers)
"""


@pytest.fixture
def model(tmp_path: Path) -> str:
    (tmp_path / "nets.py").write_text(CODE)
    return f"{tmp_path / 'nets.py'}:make"


def photographs(folder: Path, table: str | None) -> DataSpec:
    folder.mkdir()
    for name in ("a", "b"):
        Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(folder / f"{name}.png")
    if table is not None:
        (folder / "labels.csv").write_text(table)
    return DataSpec(source=f"folder:{folder}", size=16)


@pytest.mark.parametrize("table", ["file,class_index\na.png,0\nb.png,2\n", None])
def test_classes_without_names_are_numbered_as_the_model_has_them(
    model: str, tmp_path: Path, table: str | None
) -> None:
    """A folder of some classes alone states neither how many there are nor what they are called."""
    data = photographs(tmp_path / "photographs", table)
    opened = open_named(model, weights=None, labels=None, data=data, side=16)
    assert opened.classes == ["0", "1", "2", "3", "4"]


def test_names_come_from_the_folder_where_it_has_them(model: str, tmp_path: Path) -> None:
    data = photographs(tmp_path / "photographs", "file,class\na.png,cat\nb.png,dog\n")
    assert names_classes(tmp_path / "photographs")
    assert open_named(model, weights=None, labels=None, data=data, side=16).classes is None


def test_probabilities_are_no_logits(tmp_path: Path) -> None:
    (tmp_path / "nets.py").write_text(CODE.replace("nn.Linear(4, 5)", "nn.Linear(4, 5), nn.Softmax(1)"))
    data = photographs(tmp_path / "photographs", "file,class\na.png,cat\nb.png,dog\n")
    opened = open_named(f"{tmp_path / 'nets.py'}:make", weights=None, labels=None, data=data, side=16)
    with pytest.raises(TrainingError, match="answers with probabilities, not with logits: leave out the softmax"):
        network_of(opened, None, classes=5, found=Preprocessing(side=16))


def test_what_cannot_be_followed_is_said_or_found() -> None:
    stated = Stated("huggingface", {"image_processor_type": "PerceiverImageProcessor"})
    opened = OpenedModel(nn.Identity(), "m", "folder:m", preprocessing=stated)
    with pytest.raises(PreprocessingError, match=r"is not known; state it with --resize and --normalise .* or find it"):
        Wanted("auto", Options(size=96, resize="exact")).of(opened, 96)
    assert Wanted("find").of(opened, 224) == DEFAULT.model_copy(update={"side": 224})
    said = Wanted("auto", Options(resize="shorter_side:110", normalise="half")).of(opened, 96)
    assert (said.side, said.resize.resize_to, said.normalise.mean) == (96, 110, [0.5] * 3)
