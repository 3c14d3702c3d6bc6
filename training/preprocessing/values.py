"""Values that configurations of other libraries hold, checked: sides, fractions, lists by channel, filters."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from gateway.core.preprocessing import Filter, Normalisation, Preprocessing, Resize
from training.errors import PreprocessingError

IMAGENET = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
HALF = ([0.5, 0.5, 0.5], [0.5, 0.5, 0.5])
CLIP = ([0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711])
PILLOW: dict[int, Filter] = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic", 4: "box", 5: "hamming"}
"""Filters by Pillow's numbers."""
NAMES: dict[str, Filter] = {name: name for name in PILLOW.values()} | {"cubic": "bicubic", "linear": "bilinear"}
REMEDY = (
    "state it with --resize and --normalise (--size, --filter, ... where their defaults are others) or find it with "
    "--preprocessing find"
)


def side_of(value: Any, where: str) -> int:
    """The side of a square: a number, [h, w], {"height", "width"} or {"shortest_edge"}."""
    if isinstance(value, Mapping):
        value = list(value.values())
    sides = list(value) if isinstance(value, (list, tuple)) else [value]
    if not sides or any(isinstance(s, bool) or not isinstance(s, (int, float)) or s != int(s) for s in sides):
        raise PreprocessingError(f"{where}: {value!r} is no size in pixels")
    if len({int(side) for side in sides}) > 1:
        raise PreprocessingError(f"{where}: {sides} is not square; networks of square images are served")
    return int(sides[0])


def fraction_of(value: Any, where: str) -> float:
    """A share above 0."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not value > 0:
        raise PreprocessingError(f"{where}: {value!r} is no share above 0")
    return float(value)


def channels_of(value: Any, where: str) -> list[float]:
    """One number by channel, of a list or of one for all three."""
    numbers = list(value) if isinstance(value, (list, tuple)) else [value] * 3
    if any(isinstance(n, bool) or not isinstance(n, (int, float)) for n in numbers):
        raise PreprocessingError(f"{where}: {value!r} is no list of numbers by channel")
    return [float(number) for number in numbers]


def filter_of(value: Any, where: str) -> Filter:
    """A filter by its name or by Pillow's number."""
    found = PILLOW.get(value) if isinstance(value, int) else NAMES.get(str(value).lower())
    if found is None:
        raise PreprocessingError(f"{where}: the interpolation {value!r} is not known; there are {', '.join(NAMES)}")
    return found


def stated(source: str, *, side: int | None, resize: Mapping[str, Any], normalise: Mapping[str, Any]) -> Preprocessing:
    """The checked whole; `PreprocessingError` names what is out of range."""
    try:
        return Preprocessing(
            side=side,
            resize=Resize.model_validate(resize),
            normalise=Normalisation.model_validate(normalise),
            source=source,
        )
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise PreprocessingError(f"{source}: {place + ': ' if place else ''}{first['msg']}; {REMEDY}") from None
