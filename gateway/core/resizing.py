"""Images of any size -> the network's size, by the rule of the manifest; without torch.

Sizes and offsets are rounded as in the pipelines that networks are trained with: the longer side down
(torchvision.transforms.Resize), sides of a padded image to the nearest (timm's border mode), the crop's offset as the
manifest states.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps

from gateway.core.manifest import InputSpec
from gateway.core.preprocessing import Resize
from gateway.core.torch_resizing import resized

REDUCED_AT_LEAST = 2.5
"""A JPEG is decoded at a fraction of its size if both its sides are then at least this many times those wanted."""
_SPARE = 4  # an image of more than so many times the pixels that are kept is not scaled as a whole
# Pixels of an axis, before and after, up to which torch's arithmetic is used: its weights are of the whole axis,
# whatever of it is kept, and its first pass makes lines of the network's width, though the image may be one pixel wide.
_LONGEST = 1 << 15
_FILTERS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
    "box": Image.Resampling.BOX,
    "hamming": Image.Resampling.HAMMING,
}
_KEYS = -0.75  # of the cubic convolution without antialiasing (Keys 1981), as in OpenCV and torch


class _Axis(NamedTuple):
    """One axis: `source` pixels become `scaled`; `side` of these from `start` are kept, behind `before` of fill."""

    source: int
    scaled: int
    start: int
    side: int
    before: int

    @property
    def kept(self) -> slice:
        """What is kept, in scaled pixels."""
        return slice(self.start, self.start + self.side)

    @property
    def box(self) -> tuple[float, float]:
        """What is kept, in pixels of the source."""
        return self.start * self.source / self.scaled, (self.start + self.side) * self.source / self.scaled


def fitted(image: Image.Image, spec: InputSpec) -> np.ndarray:
    """uint8 (H, W, C) of `spec` from an upright image of its colours; one of the network's size is taken as it is.

    So what was prepared already (by a client, or by this very function) is not scaled and cropped again.
    """
    resize, size = spec.resize, (spec.width, spec.height)
    if image.size == size:
        return np.asarray(image).reshape(spec.height, spec.width, spec.channels)
    if resize.rule == "center_crop" and resize.antialias:
        fit = ImageOps.fit(image, size, _FILTERS[resize.filter])
        return np.asarray(fit).reshape(spec.height, spec.width, spec.channels)
    x, y = _axes(image.size, spec)
    kept = _scaled(image, x, y, resize)
    kept = kept.reshape(y.side, x.side, spec.channels)
    if kept.shape[:2] == (spec.height, spec.width):
        return kept
    made = np.empty((spec.height, spec.width, spec.channels), np.uint8)
    made[:] = resize.fill[: spec.channels]
    made[y.before : y.before + y.side, x.before : x.before + x.side] = kept
    return made


def wanted_size(size: tuple[int, int], spec: InputSpec) -> tuple[int, int] | None:
    """(width, height) that an upright image of `size` may be decoded to at least; None: only as it is."""
    resize = spec.resize
    if not resize.reduced or not resize.antialias or resize.filter == "nearest":
        return None
    width, height = scaled_size(size, spec)
    return math.ceil(REDUCED_AT_LEAST * width), math.ceil(REDUCED_AT_LEAST * height)


def scaled_size(size: tuple[int, int], spec: InputSpec) -> tuple[int, int]:
    """(width, height) of the whole image of `size` after scaling, before it is cropped or padded."""
    resize, (width, height) = spec.resize, size
    if resize.rule == "stretch":
        return (resize.resize_to or spec.width, resize.resize_to or spec.height)
    if resize.rule == "pad":
        longest = resize.resize_to or 0
        ratio = max(width / (longest or spec.width), height / (longest or spec.height))
        return max(1, round(width / ratio)), max(1, round(height / ratio))
    if resize.rule == "center_crop":
        by = max(spec.width / width, spec.height / height)
        return max(spec.width, round(width * by)), max(spec.height, round(height * by))
    shorter = resize.resize_to
    if shorter is None and spec.width != spec.height:
        return scaled_size(size, spec.model_copy(update={"resize": Resize(rule="center_crop")}))
    shorter = shorter or spec.width
    if width <= height:
        return shorter, int(shorter * height / width)
    return int(shorter * width / height), shorter


def _axes(size: tuple[int, int], spec: InputSpec) -> tuple[_Axis, _Axis]:
    scaled, wanted = scaled_size(size, spec), (spec.width, spec.height)
    made = []
    for source, now, side in zip(size, scaled, wanted, strict=True):
        spare = now - side
        if spare < 0:
            made.append(_Axis(source, now, 0, now, -spare // 2))
        else:
            start = round(spare / 2) if spec.resize.crop_offset == "round" else spare // 2
            made.append(_Axis(source, now, start, side, 0))
    return made[0], made[1]


def _scaled(image: Image.Image, x: _Axis, y: _Axis, resize: Resize) -> np.ndarray:
    """The kept part, uint8 (y.side, x.side) or (y.side, x.side, C)."""
    if image.size == (x.scaled, y.scaled):
        return np.asarray(image)[y.kept, x.kept]
    if resize.antialias:
        resample = _FILTERS[resize.filter]
        if resize.arithmetic == "torch" and max(*image.size, x.scaled, y.scaled) <= _LONGEST:
            return resized(np.asarray(image), (x.scaled, y.scaled), (y.kept, x.kept), resize.filter)
        if x.scaled * y.scaled <= _SPARE * x.side * y.side:
            return np.asarray(image.resize((x.scaled, y.scaled), resample))[y.kept, x.kept]
        # The same but for roundings; a strip of 1 x 3000 then costs no more than a square.
        (left, right), (upper, lower) = x.box, y.box
        return np.asarray(image.resize((x.side, y.side), resample, box=(left, upper, right, lower)))
    return _sampled(np.asarray(image), x, y, resize)


def _sampled(image: np.ndarray, x: _Axis, y: _Axis, resize: Resize) -> np.ndarray:
    """Interpolation between neighbours alone, as of OpenCV's `resize` and of torch without antialiasing."""
    (rows, row_weights), (columns, column_weights) = (_taps(axis, resize) for axis in (y, x))
    # In one step: whole rows of an image that is millions of pixels wide would take gigabytes.
    near = image[rows.reshape(-1, 1), columns.reshape(-1)].astype(np.float32)
    near = near.reshape(*rows.shape, *columns.shape, -1)
    made = np.einsum("atbuc,at,bu->abc", near, row_weights, column_weights, optimize=True)
    return np.asarray(np.clip(np.floor(made + 0.5), 0, 255).astype(np.uint8))


def _taps(axis: _Axis, resize: Resize) -> tuple[np.ndarray, np.ndarray]:
    """Source pixels (side, taps) of each kept pixel, and their weights; those beyond the border are its last."""
    by = axis.source / axis.scaled
    kept = np.arange(axis.start, axis.start + axis.side)
    if resize.filter == "nearest":
        index = np.minimum(np.floor(kept * by).astype(np.int64), axis.source - 1)
        return index[:, None], np.ones((len(index), 1), np.float32)
    place = (kept + 0.5) * by - 0.5
    if resize.filter == "bilinear":
        place = place.clip(0, axis.source - 1)
    first = np.floor(place)
    share = place - first
    if resize.filter == "bilinear":
        weights, offsets = np.stack([1 - share, share], 1), np.arange(2)
    else:
        near, far = np.stack([share, 1 - share]), np.stack([1 + share, 2 - share])
        inner = ((_KEYS + 2) * near - (_KEYS + 3)) * near**2 + 1
        outer = ((_KEYS * far - 5 * _KEYS) * far + 8 * _KEYS) * far - 4 * _KEYS
        weights, offsets = np.stack([outer[0], inner[0], inner[1], outer[1]], 1), np.arange(-1, 3)
    index = (first.astype(np.int64)[:, None] + offsets).clip(0, axis.source - 1)
    return index, weights.astype(np.float32)
