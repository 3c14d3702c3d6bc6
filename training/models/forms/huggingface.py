"""A folder as the Hugging Face hub has it: `config.json` and `model.safetensors`, of transformers or of timm."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from training.errors import TrainingError
from training.models.forms import timm
from training.models.forms.offline import optional
from training.models.forms.opened import KEPT, Asked, OpenedModel, Stated, digest_of

WEIGHTS = "model.safetensors"


class Logits(nn.Module):
    """A classifier of transformers, which answers with an object, as a module that answers with logits."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return self.model(pixel_values=x).logits


def takes(argument: str) -> bool:
    return argument.startswith(KEPT) or Path(argument).is_dir()


def opened(asked: Asked) -> OpenedModel:
    """The image classifier in a folder; `TrainingError` if it is none, or its weights are pickled."""
    folder = asked.file()
    config = timm.read_config(folder)
    if not asked.bare and not (folder / WEIGHTS).is_file():
        raise TrainingError(
            f"{folder}: has no {WEIGHTS}; pickled weights are not read: write them with safetensors.torch.save_file"
        )
    if timm.is_timm(config):
        return timm.opened_folder(asked, folder, config)
    return _transformers(asked, folder, config)


def _transformers(asked: Asked, folder: Path, config: dict[str, Any]) -> OpenedModel:
    transformers = optional("transformers", str(folder))
    named = config.get("architectures") or ["no architecture"]
    try:
        settings = transformers.AutoConfig.from_pretrained(str(folder), local_files_only=True)
        plain = {"attn_implementation": "eager"}  # attention in operators that ONNX has
        kind = transformers.AutoModelForImageClassification
        if asked.bare:
            model = kind.from_config(settings, **plain)
        else:
            model = kind.from_pretrained(
                str(folder), local_files_only=True, use_safetensors=True, trust_remote_code=False, **plain
            )
    except Exception as error:  # noqa: BLE001  # whatever transformers raises
        reason = " ".join(str(error).split())[:200]
        raise TrainingError(f"{folder}: {named[0]} is no image classifier that transformers opens: {reason}") from None
    stated = _processor(folder)
    return OpenedModel(
        Logits(model.float()).eval(),
        folder.resolve().name,
        KEPT + folder.resolve().name,
        digest="" if asked.bare else digest_of([folder / WEIGHTS]),
        classes=_labels(config, int(settings.num_labels)),
        preprocessing=None if stated is None else Stated("huggingface", stated),
        side=_side(config),
        kept=(folder / "config.json",),
    )


def _labels(config: dict[str, Any], count: int) -> list[str] | None:
    """Names by index; `LABEL_0` and so on are none."""
    found = {int(index): str(name) for index, name in (config.get("id2label") or {}).items()}
    if sorted(found) != list(range(count)) or all(name.startswith("LABEL_") for name in found.values()):
        return None
    return [found[index] for index in range(count)]


def _processor(folder: Path) -> dict[str, Any] | None:
    path = folder / "preprocessor_config.json"
    try:
        found = json.loads(path.read_text("utf-8")) if path.is_file() else None
    except ValueError as error:
        raise TrainingError(f"{path}: not a readable configuration ({error})") from None
    return found if isinstance(found, dict) else None


def _side(config: dict[str, Any]) -> int | None:
    """Transformers of fixed positions state their size of image; convolutional networks may state one as well."""
    size = config.get("image_size")
    return size if isinstance(size, int) and "patch_size" in config else None
