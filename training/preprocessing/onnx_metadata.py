"""An ONNX file's metadata properties, as they are written in the field.

`palisade.preprocessing` (JSON of `Preprocessing`) is our own. `Image.*` are ONNX's (docs/MetadataProps.md of onnx);
`model_info ...` those of OpenVINO's Model API and training extensions; `imgsz` with `task: classify` Ultralytics'.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Callable, Mapping
from typing import Any

from gateway.core.preprocessing import Preprocessing
from training.errors import PreprocessingError
from training.preprocessing.values import REMEDY, channels_of, side_of, stated

OWN = "palisade.preprocessing"
_ORDERS = {"rgb8": "rgb", "rgba8": "rgb", "bgr8": "bgr", "bgra8": "bgr"}
_RANGES: dict[str, dict[str, Any]] = {
    "nominalrange_0_255": {"scale": "byte"},
    "normalized_0_1": {},
    "normalized_1_1": {"mean": [0.5] * 3, "std": [0.5] * 3},
}
_RULES = {
    "standard": "stretch",
    "fit_to_window": "pad",
    "fit_to_window_letterbox": "pad",
    "crop": "center_crop",
}
_MODEL_INFO = "model_info "


def from_onnx(
    metadata: Mapping[str, str], *, side: int | None = None, source: str = "ONNX metadata"
) -> Preprocessing | None:
    """What the properties state of the input; None if they state nothing. `side` is that of the graph's input."""
    lower = {key.lower(): value for key, value in metadata.items()}
    readers: list[tuple[bool, Callable[[Mapping[str, str], int | None, str], Preprocessing]]] = [
        (OWN in lower, _own),
        (any(key.startswith("image.") for key in lower), _standard),
        (any(key.startswith(_MODEL_INFO) and "labels" not in key for key in lower), _model_info),
        ("imgsz" in lower and lower.get("task") == "classify", _ultralytics),
    ]
    reader = next((reader for found, reader in readers if found), None)
    return None if reader is None else reader(lower, side, source)


def _own(metadata: Mapping[str, str], side: int | None, source: str) -> Preprocessing:
    try:
        found = json.loads(metadata[OWN])
    except ValueError:
        raise PreprocessingError(f"{source}: {OWN} is not JSON") from None
    if not isinstance(found, dict):
        raise PreprocessingError(f"{source}: {OWN} is no JSON object")
    return stated(
        source, side=found.get("side") or side, resize=found.get("resize", {}), normalise=found.get("normalise", {})
    )


def _standard(metadata: Mapping[str, str], side: int | None, source: str) -> Preprocessing:
    order = _one_of(metadata, "image.bitmappixelformat", "bgr8", _ORDERS, source)
    values = _one_of(metadata, "image.nominalpixelrange", "nominalrange_0_255", _RANGES, source)
    if metadata.get("image.colorspacegamma", "srgb").lower() != "srgb":
        raise PreprocessingError(f"{source}: Image.ColorSpaceGamma is not SRGB; {REMEDY}")
    return stated(source, side=side, resize={"rule": "center_crop"}, normalise={"channel_order": order, **values})


def _model_info(metadata: Mapping[str, str], side: int | None, source: str) -> Preprocessing:
    info = {key.removeprefix(_MODEL_INFO): value for key, value in metadata.items() if key.startswith(_MODEL_INFO)}
    reverse = info.get("reverse_input_channels", "false").lower() in ("true", "yes", "1")
    kind = info.get("resize_type", "standard")
    resize: dict[str, Any] = {"rule": _one_of(info, "resize_type", kind, _RULES, source)}
    if "pad_value" in info:
        resize["fill"] = [int(_numbers(info["pad_value"], source)[0])] * 3
    return stated(
        source,
        side=side,
        resize=resize,
        normalise={
            # Its images are OpenCV's, BGR, unless they are reversed.
            "channel_order": "rgb" if reverse else "bgr",
            "scale": "byte",
            "mean": _numbers(info.get("mean_values", "0 0 0"), source),
            "std": _numbers(info.get("scale_values", "1 1 1"), source),
        },
    )


def _ultralytics(metadata: Mapping[str, str], side: int | None, source: str) -> Preprocessing:
    """Its classifiers see the middle at 0 to 1, RGB."""
    try:
        size = ast.literal_eval(metadata["imgsz"])
    except (ValueError, SyntaxError):
        raise PreprocessingError(f"{source}: imgsz {metadata['imgsz']!r} is no size") from None
    return stated(source, side=side or side_of(size, f"{source}: imgsz"), resize={"rule": "shorter_side"}, normalise={})


def _numbers(text: str, source: str) -> list[float]:
    try:
        numbers = [float(part) for part in text.replace(",", " ").strip("[]() ").split()]
    except ValueError:
        numbers = []
    if not numbers:
        raise PreprocessingError(f"{source}: {text!r} is no list of numbers by channel")
    return channels_of(numbers if len(numbers) > 1 else numbers[0], source)


def _one_of(metadata: Mapping[str, str], key: str, default: str, known: Mapping[str, Any], source: str) -> Any:
    value = metadata.get(key, default).lower()
    if value not in known:
        raise PreprocessingError(f"{source}: {key} {value!r} is not known; there are {', '.join(known)}; {REMEDY}")
    return known[value]
