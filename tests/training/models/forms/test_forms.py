"""Every form of a network gives the same answers as the network that was written in it, without reaching out."""

from __future__ import annotations

import copy
import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torchvision.models import resnet18

from tests.training.models.test_adapted import Stages
from training.errors import TrainingError
from training.models.forms import architecture, keep, open_model
from training.models.forms.labels import read_labels
from training.models.forms.onnx import _labels

SIDE = 32


def quietly_exported(network: nn.Module, path: Path, **options: Any) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(network, (torch.rand(1, 3, SIDE, SIDE),), str(path), dynamo=False, **options)
    return path


def stages(seed: int = 0) -> Stages:
    torch.manual_seed(seed)
    network = Stages(5)
    with torch.no_grad():
        network(torch.rand(8, 3, SIDE, SIDE))  # statistics of BatchNorm
    return network.eval()


def check(opened: nn.Module, network: nn.Module, images: int = 3) -> None:
    x = torch.rand(images, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        torch.testing.assert_close(opened(x), network(x), rtol=1e-4, atol=1e-5)


def test_torchvision_takes_as_many_classes_as_the_weights_have(tmp_path: Path) -> None:
    network = resnet18(weights=None, num_classes=7).eval()
    save_file(network.state_dict(), tmp_path / "weights.safetensors")
    opened = open_model("torchvision:resnet18", weights=tmp_path / "weights.safetensors", classes=3)
    check(opened.body, network)
    assert opened.classes is None
    assert opened.preprocessing is not None
    assert opened.preprocessing.source == "torchvision"
    assert opened.preprocessing.content.crop_size == [224]


def test_imagenet_has_its_names(tmp_path: Path) -> None:
    network = resnet18(weights=None).eval()
    save_file(network.state_dict(), tmp_path / "weights.safetensors")
    opened = open_model("torchvision:resnet18", weights=tmp_path / "weights.safetensors")
    assert opened.classes is not None
    assert (opened.classes[0], len(opened.classes), len(set(opened.classes))) == ("tench", 1000, 1000)


def test_an_architecture_without_weights_is_told() -> None:
    with pytest.raises(TrainingError, match="names an architecture; pass its weights: --weights"):
        open_model("torchvision:resnet18")


@pytest.mark.parametrize("options", [{}, {"dynamic_axes": {"x": {0: "batch"}}}], ids=["fixed", "free"])
def test_onnx(tmp_path: Path, options: dict[str, Any]) -> None:
    network = stages()
    path = quietly_exported(network, tmp_path / "mine.onnx", input_names=["x"], **options)
    opened = open_model(str(path), side=SIDE)
    check(opened.body, network)
    assert (opened.name, opened.arch, opened.side, opened.normalise) == ("mine", "mine.onnx", SIDE, None)
    keep(opened, tmp_path / "bundle")
    bare = architecture("mine.onnx", classes=5, side=SIDE, kept=tmp_path / "bundle")
    assert (tmp_path / "bundle" / "mine.onnx").stat().st_size < path.stat().st_size or sum(
        p.numel() for p in network.parameters()
    ) < 10_000
    bare.load_state_dict(opened.body.state_dict())
    check(bare, network)


def test_exported_programs(tmp_path: Path) -> None:
    network, batch = stages(), torch.export.Dim("batch")
    x = torch.rand(2, 3, SIDE, SIDE)
    torch.export.save(torch.export.export(network, (x,), dynamic_shapes=({0: batch},)), tmp_path / "mine.pt2")
    opened = open_model(str(tmp_path / "mine.pt2"))
    check(opened.body, network)
    check(copy.deepcopy(opened.body), network)
    assert opened.side == SIDE
    torch.export.save(torch.export.export(network, (x,)), tmp_path / "fixed.pt2")
    with pytest.raises(TrainingError, match=r"batches of 2 alone; export it with dynamic_shapes"):
        open_model(str(tmp_path / "fixed.pt2"))


def test_own_code_may_bring_its_weights(tmp_path: Path) -> None:
    (tmp_path / "nets.py").write_text(
        "import torch\nfrom tests.training.models.forms.test_forms import stages\n\ndef make():\n    return stages(4)\n"
    )
    opened = open_model(f"{tmp_path}/nets.py:make")
    check(opened.body, stages(4))
    assert opened.digest == open_model(f"{tmp_path}/nets.py:make").digest


def test_timm(tmp_path: Path) -> None:
    timm = pytest.importorskip("timm")
    network = timm.create_model("test_resnet", pretrained=False, num_classes=6).eval()
    save_file(network.state_dict(), tmp_path / "weights.safetensors")
    opened = open_model("timm:test_resnet", weights=tmp_path / "weights.safetensors")
    check(opened.body, network)
    assert opened.preprocessing is not None
    assert opened.preprocessing.content["crop_pct"] == network.pretrained_cfg["crop_pct"]
    with pytest.raises(TrainingError, match="timm has no network 'resnet_18'; did you mean"):
        open_model("timm:resnet_18", weights=tmp_path / "weights.safetensors")


def timm_folder(folder: Path) -> nn.Module:
    timm = pytest.importorskip("timm")
    network = timm.create_model("test_vit", pretrained=False, num_classes=3, img_size=SIDE).eval()
    stated = {"mean": [0.1] * 3, "std": [0.2] * 3, "input_size": [3, SIDE, SIDE], "fixed_input_size": True}
    config = {
        "architecture": "test_vit",
        "num_classes": 3,
        "model_args": {"img_size": SIDE},
        "label_names": ["cat", "dog", "cat"],
        "pretrained_cfg": stated,
    }
    (folder / "config.json").write_text(json.dumps(config))
    save_file(network.state_dict(), folder / "model.safetensors")
    return network


def transformers_folder(folder: Path) -> nn.Module:
    transformers = pytest.importorskip("transformers")
    config = transformers.ViTConfig(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        image_size=SIDE,
        patch_size=8,
        id2label={0: "cat", 1: "dog", 2: "cat"},
        label2id={"cat": 0, "dog": 1},
    )
    network = transformers.ViTForImageClassification(config).eval()
    network.save_pretrained(folder)
    stated = {"do_normalize": True, "image_mean": [0.1] * 3, "image_std": [0.2] * 3, "rescale_factor": 1 / 255}
    (folder / "preprocessor_config.json").write_text(json.dumps(stated))

    class Answers(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return network(pixel_values=x).logits

    return Answers()


@pytest.mark.parametrize("made", [timm_folder, transformers_folder])
def test_hugging_face_folders(tmp_path: Path, made: Callable[[Path], nn.Module]) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    network = made(folder)
    opened = open_model(str(folder))
    check(opened.body, network)
    assert opened.classes == ["cat", "dog", "cat (2)"]
    assert opened.side == SIDE
    assert opened.preprocessing is not None
    stated = opened.preprocessing.content
    assert stated.get("mean", stated.get("image_mean")) == [0.1] * 3
    keep(opened, tmp_path / "bundle")
    bare = architecture(opened.arch, classes=3, side=SIDE, kept=tmp_path / "bundle")
    bare.load_state_dict(opened.body.state_dict())
    check(bare.eval(), network)
    (folder / "model.safetensors").unlink()
    with pytest.raises(TrainingError, match=r"has no model\.safetensors; pickled weights are not read"):
        open_model(str(folder))


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("labels.txt", "cat\ndog\n\n"),
        ("labels.json", '["cat", "dog"]'),
        ("labels.json", '{"1": "dog", "0": "cat"}'),
        ("labels.json", '{"0": ["n1", "cat"], "1": ["n2", "dog"]}'),
        ("labels.json", '{"id2label": {"0": "cat", "1": "dog"}}'),
        ("labels.txt", "\ufeffcat\r\ndog\r\n"),
        ("labels.json", '\ufeff["cat", "dog"]'),
    ],
)
def test_labels(tmp_path: Path, file: str, content: str) -> None:
    (tmp_path / file).write_bytes(content.encode())
    assert read_labels(tmp_path / file) == ["cat", "dog"]


@pytest.mark.parametrize("content", ["", "cat", "cat\n\ndog"])
def test_labels_that_are_none(tmp_path: Path, content: str) -> None:
    (tmp_path / "labels.txt").write_text(content)
    with pytest.raises(TrainingError, match="expected the name of one class on each line"):
        read_labels(tmp_path / "labels.txt")


@pytest.mark.parametrize("content", ['{"id2label": null}', '[["n1", "cat"], []]', "[" * 5000])
def test_labels_of_another_structure(tmp_path: Path, content: str) -> None:
    (tmp_path / "labels.json").write_text(content)
    with pytest.raises(TrainingError, match="no labels can be read from it"):
        read_labels(tmp_path / "labels.json")


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("{0: 'tench', 1: 'goldfish'}", ["tench", "goldfish"]),  # Ultralytics
        ("""{1: "plumber's helper", 0: 'shark, white'}""", ["shark, white", "plumber's helper"]),
        ("""["plumber's helper", "cat"]""", ["plumber's helper", "cat"]),
        ('{"0": "tench", "1": "goldfish"}', ["tench", "goldfish"]),
        ("tench,goldfish", ["tench", "goldfish"]),
        ("tench\nshark, white\n", ["tench", "shark, white"]),
        ('{"cat": 0}', None),
    ],
)
def test_names_in_an_onnx_files_metadata(text: str, names: list[str] | None) -> None:
    assert _labels({"names": text}) == names


def test_what_has_no_form_is_told() -> None:
    with pytest.raises(TrainingError, match=r"resnet18: unknown form of model; use torchvision:NAME, .* or MODULE"):
        open_model("resnet18")
