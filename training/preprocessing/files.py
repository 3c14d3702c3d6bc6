"""A JSON file that states a model's preprocessing: Hugging Face's, timm's or our own; told apart by its keys."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from gateway.core.preprocessing import Preprocessing
from training.errors import PreprocessingError
from training.preprocessing.huggingface import from_huggingface
from training.preprocessing.timm_config import from_timm
from training.preprocessing.values import stated

_OWN = {"side", "resize", "normalise", "source"}
_TIMM = {"pretrained_cfg", "input_size", "crop_pct", "interpolation"}
_HUGGING_FACE = {"image_processor_type", "feature_extractor_type", "image_mean", "do_resize"}


def read_preprocessing(path: Path) -> Preprocessing:
    """The preprocessing that a JSON file states; `PreprocessingError` if it is none of the three forms."""
    found = _object(path)
    if _HUGGING_FACE & set(found):
        return from_huggingface(found, source=str(path))
    if _TIMM & set(found):
        return from_timm(found, source=str(path))
    if found and not set(found) - _OWN:
        return stated(
            str(path),
            side=found.get("side"),
            resize=found.get("resize", {}),
            normalise=found.get("normalise", {}),
        )
    raise PreprocessingError(
        f"{path}: no preprocessor_config.json, no configuration of timm, and no object of side, resize and normalise"
    )


def _object(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise PreprocessingError(f"{path}: no such file") from None
    except (OSError, ValueError) as error:
        raise PreprocessingError(f"{path}: not a JSON file: {str(error).splitlines()[0]}") from None
    if not isinstance(found, dict):
        raise PreprocessingError(f"{path}: not a JSON object")
    return found
