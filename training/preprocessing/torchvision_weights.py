"""The transforms of torchvision's weights, or a `Compose` of its transforms."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from gateway.core.preprocessing import Preprocessing
from training.errors import PreprocessingError
from training.preprocessing.values import filter_of, side_of, stated

# Transforms that change the form of the numbers and nothing else.
_FORM = ("ToTensor", "PILToTensor", "ToImage", "ConvertImageDtype", "ToDtype", "RGB")


def from_torchvision(transforms: Any, *, source: str = "torchvision's transforms") -> Preprocessing:
    """What a preset (`weights.transforms()`) or a `Compose` of Resize, CenterCrop and Normalize does to an image."""
    if hasattr(transforms, "resize_size") and hasattr(transforms, "crop_size"):
        resize = _resized(transforms.resize_size, transforms.interpolation, transforms.antialias, source)
        normalise = {"mean": list(transforms.mean), "std": list(transforms.std)}
        side = side_of(transforms.crop_size, f"{source}: crop_size")
        return stated(source, side=side, resize=resize, normalise=normalise)
    return _composed(getattr(transforms, "transforms", [transforms]), source)


def of_torchvision_network(name: str) -> Preprocessing | None:
    """That of the default weights of torchvision's network `name`, without reading them; None if it has none."""
    from torchvision import models

    try:
        weights = models.get_model_weights(name).DEFAULT
    except (ValueError, AttributeError):
        return None
    return from_torchvision(weights.transforms(), source=f"torchvision's weights {weights}")


def _resized(size: Any, interpolation: Any, antialias: Any, source: str) -> dict[str, Any]:
    sizes = list(size) if isinstance(size, (list, tuple)) else [size]
    return {
        "rule": "shorter_side" if len(sizes) == 1 else "stretch",
        "resize_to": side_of(sizes, f"{source}: the size of Resize"),
        "filter": filter_of(getattr(interpolation, "value", interpolation), f"{source}: Resize"),
        "antialias": antialias is not False,
    }


def _composed(steps: Iterable[Any], source: str) -> Preprocessing:
    side: int | None = None
    resize: dict[str, Any] | None = None
    normalise: dict[str, Any] = {}
    for step in steps:
        kind = type(step).__name__
        if kind == "Resize" and resize is None and side is None:
            resize = _resized(step.size, step.interpolation, step.antialias, source)
        elif kind == "CenterCrop" and resize is not None and side is None:
            side = side_of(step.size, f"{source}: CenterCrop")
        elif kind == "Normalize" and not normalise:
            normalise = {"mean": list(step.mean), "std": list(step.std)}
        elif kind not in _FORM:
            raise PreprocessingError(f"{source}: the transform {kind} cannot be followed in this place")
    if resize is None:
        raise PreprocessingError(f"{source}: no Resize among the transforms")
    if side is None and resize["rule"] == "shorter_side":
        raise PreprocessingError(f"{source}: no CenterCrop behind Resize, so that images have sizes of their own")
    return stated(source, side=side or resize["resize_to"], resize=resize, normalise=normalise)
