"""What a user says about a model's input on the command line, over what the model's file states."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from gateway.core.preprocessing import Normalisation, Preprocessing, Resize, has_torch_arithmetic
from training.errors import PreprocessingError
from training.preprocessing.values import HALF, IMAGENET, stated

DEFAULT = Preprocessing(resize=Resize(rule="center_crop"))
"""Where nothing is stated: the middle of the image, pixels of 0 to 1."""
_RULES = {"exact": "stretch", "stretch": "stretch", "center_crop": "center_crop"}
_RULES |= {"shorter_side": "shorter_side", "pad": "pad"}
_NAMED = {"imagenet": IMAGENET, "half": HALF, "none": ([0.0] * 3, [1.0] * 3)}


@dataclass(frozen=True)
class Options:
    """Each is None where nothing is said. `resize` is a rule, with pixels behind a colon: `shorter_side:256`."""

    size: int | None = None
    resize: str | None = None
    filter: str | None = None
    antialias: bool | None = None
    arithmetic: Literal["pillow", "torch"] | None = None
    channels: Literal["rgb", "bgr"] | None = None
    scale: Literal["unit", "byte"] | None = None
    normalise: str | None = None

    @property
    def complete(self) -> bool:
        """Whether all is said that has no default of its own."""
        return self.resize is not None and self.normalise is not None

    def over(self, found: Preprocessing) -> Preprocessing:
        """`found` with what is said in its place; another `size` keeps the share of the image that is cropped."""
        resize: dict[str, Any] = found.resize.model_dump()
        if self.size is not None and found.side is not None and resize["resize_to"] is not None:
            resize["resize_to"] = math.floor(resize["resize_to"] * self.size / found.side)
        resize |= _rule(self.resize) if self.resize is not None else {}
        resize |= _given({"filter": self.filter, "antialias": self.antialias})
        if not has_torch_arithmetic(resize["rule"], resize["filter"], resize["antialias"]):
            resize["arithmetic"] = "pillow"  # what a file stated of another filter
        resize |= _given({"arithmetic": self.arithmetic})
        said = [name for name, value in vars(self).items() if value is not None]
        source = f"{found.source}, {', '.join('--' + name for name in said)}" if said else found.source
        return stated(source, side=self.size or found.side, resize=resize, normalise=self._normalised(found.normalise))

    def _normalised(self, found: Normalisation) -> dict[str, Any]:
        values = found.model_dump() | _given({"channel_order": self.channels, "scale": self.scale})
        if self.normalise is not None:
            mean, std = _statistics(self.normalise, scale=values["scale"], order=values["channel_order"])
            values |= {"mean": mean, "std": std}
        return values


def _given(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if value is not None}


def _rule(text: str) -> dict[str, Any]:
    name, _, pixels = text.partition(":")
    if name not in _RULES or (pixels and not pixels.isdigit()):
        raise PreprocessingError(
            f"--resize {text}: expected one of {', '.join(_RULES)}, with pixels behind a colon, as shorter_side:256"
        )
    return {"rule": _RULES[name], "resize_to": int(pixels) if pixels else None}


def _statistics(text: str, *, scale: str, order: str) -> tuple[list[float], list[float]]:
    """Mean and deviation: by name, for pixels of that scale and order; or as numbers, taken as they are."""
    if text in _NAMED:
        by = 255.0 if scale == "byte" and text != "none" else 1.0
        mean, std = ([value * by for value in values] for values in _NAMED[text])
        return (mean[::-1], std[::-1]) if order == "bgr" else (mean, std)
    try:
        mean, std = ([float(number) for number in part.split(",")] for part in text.split("/"))
    except ValueError:
        mean, std = [], []
    if len(mean) != 3 or len(std) != 3 or min(std) <= 0:
        raise PreprocessingError(
            f"--normalise {text}: expected imagenet, half, none, or three means and deviations: m,m,m/s,s,s"
        )
    return mean, std
