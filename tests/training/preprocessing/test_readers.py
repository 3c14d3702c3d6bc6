"""What other libraries state of a model's input is read as they follow it themselves: pixel for pixel."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torchvision import models, transforms
from torchvision.transforms import v2

from gateway.core.manifest import InputSpec
from gateway.core.preprocessing import Normalisation, Preprocessing, Resize
from gateway.core.resizing import fitted
from training.errors import PreprocessingError
from training.models.network import Normalise
from training.preprocessing import (
    from_huggingface,
    from_onnx,
    from_timm,
    from_torchvision,
    of_torchvision_network,
    read_preprocessing,
)
from training.preprocessing.huggingface import PROCESSORS
from training.preprocessing.options import Options

SIZES = [(75, 52), (52, 75), (40, 41), (33, 33), (24, 30), (90, 61)]
SMALL = {"height": 32, "width": 32}


def picture(width: int, height: int) -> Image.Image:
    rng = np.random.default_rng(width * 1000 + height)
    coarse = Image.fromarray(rng.integers(0, 256, (height // 6 + 2, width // 6 + 2, 3), dtype=np.uint8))
    return coarse.resize((width, height), Image.Resampling.BICUBIC)


def difference(found: Preprocessing, theirs: Callable[[Image.Image], Tensor]) -> float:
    """Largest mean absolute difference of a picture, of 255 of the pixels before normalisation."""
    assert found.side is not None
    spec = InputSpec(height=found.side, width=found.side, resize=found.resize)
    mean, std = found.normalise.of_unit_pixels()
    normalise = Normalise(mean, std, reverse=found.normalise.channel_order == "bgr")
    worst = 0.0
    for size in SIZES:
        image = picture(*size)
        ours = normalise(torch.from_numpy(fitted(image, spec).copy()).permute(2, 0, 1)[None].float() / 255)[0]
        worst = max(worst, float(((ours - theirs(image)).abs() * normalise.std[0]).mean()) * 255)
    return worst


@pytest.mark.parametrize("name", ["resnet50", "efficientnet_b0", "swin_t"])
def test_torchvisions_weights(name: str) -> None:
    found = of_torchvision_network(name)
    assert found is not None
    assert difference(found, models.get_model_weights(name).DEFAULT.transforms()) < 0.1
    assert of_torchvision_network("no_such_network") is None


def test_a_composition_of_torchvision() -> None:
    steps = [
        transforms.Resize(40),
        transforms.CenterCrop(32),
        transforms.ToTensor(),
        transforms.Normalize([0.1, 0.2, 0.3], [0.4, 0.5, 0.6]),
    ]
    assert difference(from_torchvision(transforms.Compose(steps)), transforms.Compose(steps)) < 0.1
    exact = v2.Compose([v2.Resize((32, 32), antialias=False), v2.ToImage(), v2.ToDtype(torch.float32, scale=True)])
    found = from_torchvision(exact)
    assert (found.side, found.resize) == (32, Resize(rule="stretch", resize_to=32, antialias=False))


@pytest.mark.parametrize(
    ("steps", "problem"),
    [
        ([transforms.ToTensor()], "no Resize"),
        ([transforms.Resize(40)], "no CenterCrop"),
        ([transforms.Resize((40, 30))], "not square"),
        ([transforms.Resize(40), transforms.RandomCrop(32)], "RandomCrop cannot be followed"),
        ([transforms.CenterCrop(32), transforms.Resize(40)], "CenterCrop cannot be followed"),
    ],
)
def test_transforms_that_cannot_be_followed(steps: list[Any], problem: str) -> None:
    with pytest.raises(PreprocessingError, match=problem):
        from_torchvision(transforms.Compose(steps))


@pytest.mark.parametrize(
    "config",
    [
        {"input_size": (3, 32, 32), "interpolation": "bicubic"},
        {"input_size": (3, 32, 32), "crop_pct": 0.95, "interpolation": "bilinear", "mean": [0.5] * 3, "std": [0.5] * 3},
        {"input_size": (3, 32, 32), "crop_pct": 1.0, "crop_mode": "squash"},
        {"input_size": (3, 32, 32), "crop_pct": 0.9, "crop_mode": "squash"},
        {"input_size": (3, 32, 32), "crop_pct": 0.9, "crop_mode": "border"},
        {},
    ],
)
def test_timms_configuration(config: dict[str, Any]) -> None:
    data = pytest.importorskip("timm.data")
    theirs = data.create_transform(**data.resolve_data_config({}, pretrained_cfg=config or {"x": 1}), is_training=False)
    assert difference(from_timm(config), theirs) < 0.1
    assert from_timm({"architecture": "x", "pretrained_cfg": config}).resize == from_timm(config).resize


@pytest.mark.parametrize(
    ("config", "problem"),
    [
        ({"input_size": (3, 32, 40)}, "not square"),
        ({"crop_mode": "fit"}, "crop_mode 'fit' is not known"),
        ({"interpolation": "magic"}, "the interpolation 'magic' is not known"),
        ({"crop_pct": -1}, "no share above 0"),
        ({"std": [0, 1, 1]}, "greater than 0"),
        ({"input_size": 32}, "is not \\[channels, height, width\\]"),
    ],
)
def test_what_timm_would_not_state(config: dict[str, Any], problem: str) -> None:
    with pytest.raises(PreprocessingError, match=problem):
        from_timm(config)


HUGGING_FACE: list[tuple[str, dict[str, Any]]] = [
    ("ViT", {}),
    ("ViT", {"size": SMALL, "resample": 3}),
    ("ViT", {"size": SMALL, "do_rescale": False, "do_normalize": False}),
    ("DeiT", {}),
    ("Beit", {"size": SMALL, "do_center_crop": True, "crop_size": {"height": 24, "width": 24}}),
    ("ConvNext", {}),
    ("ConvNext", {"size": {"shortest_edge": 32}}),
    ("EfficientNet", {"size": SMALL}),
    ("EfficientNet", {"size": SMALL, "include_top": False}),
    ("EfficientNet", {"size": SMALL, "rescale_factor": 1 / 127.5, "rescale_offset": True}),
    ("Bit", {"size": {"shortest_edge": 40}, "crop_size": SMALL}),
    ("CLIP", {}),
    ("Levit", {}),
    ("PoolFormer", {}),
    ("PoolFormer", {"crop_pct": None}),
    ("MobileNetV1", {}),
    ("MobileNetV2", {}),
    ("MobileViT", {}),
    ("MobileViT", {"size": {"shortest_edge": 40}, "crop_size": SMALL}),
    ("Siglip", {}),
    ("Pvt", {}),
]


@pytest.mark.parametrize(("kind", "options"), HUGGING_FACE)
def test_transformers_image_processors(kind: str, options: dict[str, Any]) -> None:
    """From the full file that they write, and from one of the options alone."""
    transformers = pytest.importorskip("transformers")
    processor = getattr(transformers, f"{kind}ImageProcessor")(**options)

    def theirs(image: Image.Image) -> Tensor:
        return torch.as_tensor(np.asarray(processor(image, return_tensors="pt")["pixel_values"][0]))

    for config in (processor.to_dict(), {**options, "image_processor_type": f"{kind}ImageProcessor"}):
        assert difference(from_huggingface(config), theirs) < 0.001


# MobileViT's crop is larger than its image, which its Pillow backend puts a pixel further down if the rest is odd.
ON_PILLOW = [case for case in HUGGING_FACE if case != ("MobileViT", {})]


@pytest.mark.parametrize(("kind", "options"), ON_PILLOW)
def test_transformers_image_processors_on_pillow(kind: str, options: dict[str, Any]) -> None:
    transformers = pytest.importorskip("transformers")
    processor = getattr(transformers, f"{kind}ImageProcessorPil")(**options)

    def theirs(image: Image.Image) -> Tensor:
        return torch.as_tensor(np.asarray(processor(image, return_tensors="pt")["pixel_values"][0]))

    found = Options(arithmetic="pillow").over(from_huggingface(processor.to_dict()))
    assert difference(found, theirs) < 0.001


def test_options_leave_torchs_arithmetic_where_it_is_defined() -> None:
    stated = from_huggingface({"image_processor_type": "ViTImageProcessor"})
    assert stated.resize.arithmetic == "torch"
    assert Options(filter="bicubic").over(stated).resize.arithmetic == "torch"
    for other in (Options(filter="box"), Options(antialias=False), Options(resize="center_crop")):
        assert other.over(stated).resize.arithmetic == "pillow"
    with pytest.raises(PreprocessingError, match="the arithmetic torch is that of"):
        Options(filter="box", arithmetic="torch").over(stated)


def test_older_files_have_a_number_as_size() -> None:
    vit = from_huggingface({"feature_extractor_type": "ViTFeatureExtractor", "size": 224})
    assert (vit.side, vit.resize.rule) == (224, "stretch")
    convnext = from_huggingface({"feature_extractor_type": "ConvNextFeatureExtractor", "size": 224, "crop_pct": 0.875})
    assert (convnext.side, convnext.resize.rule, convnext.resize.resize_to) == (224, "shorter_side", 256)
    clip = from_huggingface({"feature_extractor_type": "CLIPFeatureExtractor", "size": [240, 240], "crop_size": 224})
    assert (clip.side, clip.resize.rule, clip.resize.resize_to) == (224, "stretch", 240)
    wrapped = {"architecture": "x", "pretrained_cfg": {"input_size": [3, 64, 64], "crop_pct": 0.5}}
    assert from_huggingface(wrapped).resize.resize_to == 128


@pytest.mark.parametrize(
    ("config", "problem"),
    [
        ({}, "the processor without a name is not known"),
        ({"image_processor_type": "DetrImageProcessor"}, "DetrImageProcessor is not known"),
        ({"image_processor_type": "ViTImageProcessor", "do_resize": False}, "images of many sizes"),
        ({"image_processor_type": "ViTImageProcessor", "size": {"shortest_edge": 8, "longest_edge": 9}}, "one shape"),
        ({"image_processor_type": "ViTImageProcessor", "size": {"shortest_edge": 224}}, "no crop makes a square"),
        ({"image_processor_type": "CLIPImageProcessor", "do_center_crop": False}, "224, and no crop makes a square"),
        ({"image_processor_type": "ViTImageProcessor", "do_center_crop": True}, "crop_size: None is no size in pixels"),
        ({"image_processor_type": "ViTImageProcessor", "size": "large"}, "is no size in pixels"),
        ({"image_processor_type": "ViTImageProcessor", "resample": 17}, "interpolation 17 is not known"),
        ({"image_processor_type": "ViTImageProcessor", "image_mean": "grey"}, "no list of numbers"),
        ({"image_processor_type": "ViTImageProcessor", "size": 4000}, "less than or equal to 1024"),
    ],
)
def test_what_cannot_be_followed_is_one_line(config: dict[str, Any], problem: str) -> None:
    with pytest.raises(PreprocessingError, match=problem) as caught:
        from_huggingface(config)
    assert "\n" not in str(caught.value)


def test_an_unknown_processor_that_states_all_is_followed() -> None:
    config = {
        "image_processor_type": "MineImageProcessor",
        "size": SMALL,
        "image_mean": [0.1] * 3,
        "image_std": [1] * 3,
    }
    assert from_huggingface(config).normalise.mean == [0.1] * 3


def test_the_processors_have_defaults_for_their_numbers() -> None:
    for kind in PROCESSORS:
        assert from_huggingface({"image_processor_type": f"{kind}ImageProcessor"}).side is not None


OWN = Preprocessing(side=48, resize=Resize(rule="pad"), normalise=Normalisation(scale="byte"))


@pytest.mark.parametrize(
    ("metadata", "resize", "normalise"),
    [
        ({"palisade.preprocessing": OWN.model_dump_json()}, {"rule": "pad"}, {"scale": "byte"}),
        ({"Image.BitmapPixelFormat": "Bgr8"}, {"rule": "center_crop"}, {"channel_order": "bgr", "scale": "byte"}),
        (
            {"Image.BitmapPixelFormat": "RGB8", "Image.NominalPixelRange": "Normalized_1_1"},
            {"rule": "center_crop"},
            {"mean": [0.5] * 3, "std": [0.5] * 3},
        ),
        (
            {"model_info mean_values": "123.675 116.28 103.53", "model_info scale_values": "58.395 57.12 57.375"}
            | {"model_info reverse_input_channels": "YES", "model_info resize_type": "fit_to_window_letterbox"}
            | {"model_info pad_value": "114", "model_info labels": "a b"},
            {"rule": "pad", "fill": (114, 114, 114)},
            {"scale": "byte", "mean": [123.675, 116.28, 103.53], "std": [58.395, 57.12, 57.375]},
        ),
        ({"task": "classify", "imgsz": "[224, 224]", "names": "{0: 'a'}"}, {"rule": "shorter_side"}, {}),
    ],
)
def test_metadata_of_onnx_files(metadata: dict[str, str], resize: dict[str, Any], normalise: dict[str, Any]) -> None:
    found = from_onnx(metadata, side=32)
    assert found is not None
    assert found.side == (48 if "palisade.preprocessing" in metadata else 32)
    assert found.resize == Resize.model_validate(resize)
    assert found.normalise == Normalisation.model_validate(normalise)


def test_metadata_that_state_nothing() -> None:
    assert from_onnx({}) is None
    assert from_onnx({"labels": "cat,dog", "model_info labels": "a b", "task": "detect", "imgsz": "[1, 2]"}) is None


@pytest.mark.parametrize(
    ("metadata", "problem"),
    [
        ({"palisade.preprocessing": "{"}, "is not JSON"),
        ({"palisade.preprocessing": "[]"}, "no JSON object"),
        ({"palisade.preprocessing": '{"resize": {"rule": "x"}}'}, "rule"),
        ({"Image.NominalPixelRange": "NominalRange_16_235"}, "is not known"),
        ({"Image.ColorSpaceGamma": "Linear"}, "is not SRGB"),
        ({"model_info mean_values": "grey"}, "no list of numbers"),
        ({"task": "classify", "imgsz": "large"}, "is no size"),
    ],
)
def test_metadata_that_cannot_be_followed(metadata: dict[str, str], problem: str) -> None:
    with pytest.raises(PreprocessingError, match=problem):
        from_onnx(metadata)


def test_files_are_told_apart_by_their_keys(tmp_path: Path) -> None:
    path = tmp_path / "input.json"

    def read(content: object) -> Preprocessing:
        path.write_text(json.dumps(content))
        return read_preprocessing(path)

    assert read({"image_processor_type": "ViTImageProcessor"}).resize.crop_offset == "floor"
    assert read({"architecture": "x", "pretrained_cfg": {"input_size": [3, 64, 64]}}).side == 64
    assert read(OWN.model_dump(mode="json")).model_copy(update={"source": OWN.source}) == OWN
    wrong: tuple[object, ...] = ({}, {"side": 8, "sides": 9}, [])
    for content in wrong:
        with pytest.raises(PreprocessingError, match=r"input\.json"):
            read(content)
    path.write_text("{")
    with pytest.raises(PreprocessingError, match="not a JSON file"):
        read_preprocessing(path)
    with pytest.raises(PreprocessingError, match="no such file"):
        read_preprocessing(tmp_path / "none.json")
