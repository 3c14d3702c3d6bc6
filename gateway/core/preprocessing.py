"""What happens to an image file before a network sees it, as a manifest states it.

Two parts: the resize rule, which the decoder follows (`gateway.core.resizing`), and the normalisation, which the
defence graph follows, so that a graph takes pixels in [0, 1] and RGB whatever its network takes.
"""

from __future__ import annotations

from typing import Annotated, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

Rule = Literal["stretch", "center_crop", "shorter_side", "pad"]
Filter = Literal["nearest", "bilinear", "bicubic", "lanczos", "box", "hamming"]
Byte = Annotated[int, Field(ge=0, le=255)]

SAMPLED: tuple[Filter, ...] = ("nearest", "bilinear", "bicubic")
"""The filters that are defined without antialiasing."""
OF_TORCH: tuple[Filter, ...] = ("bilinear", "bicubic", "lanczos")
"""The filters that torch has for bytes with antialiasing."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Resize(_Strict):
    """How an image of another size becomes the network's.

    `stretch`: both sides are scaled, to `resize_to` and then cropped in the middle where that is given. `center_crop`:
    the largest part of the network's shape in the middle is scaled. `shorter_side`: the shorter side becomes
    `resize_to`, and the middle is cropped. `pad`: the longer side becomes `resize_to` and the rest is filled with
    `fill`. Without `resize_to` these two take the network's shorter and longer side.
    """

    rule: Rule = "stretch"
    filter: Filter = "bilinear"
    antialias: bool = True
    """Whether the filter widens as an image shrinks, as Pillow's do. Without: four or sixteen neighbours alone."""
    arithmetic: Literal["pillow", "torch"] = "pillow"
    """Whose order of passes and rounding: Pillow's, or torch's of tensors of bytes (Transformers' processors)."""
    resize_to: int | None = Field(None, ge=1, le=8192)
    crop_offset: Literal["round", "floor"] = "round"
    """How half a pixel is rounded: to even (torchvision, timm) or down (Transformers)."""
    fill: tuple[Byte, Byte, Byte] = (0, 0, 0)
    """The colour of what an image does not reach; of a grey network the first number."""
    reduced: bool = False
    """Whether JPEG files are decoded at a half, a quarter or an eighth where that is still twice what is needed."""

    @model_validator(mode="after")
    def _defined(self) -> Resize:
        if self.rule == "center_crop" and self.resize_to is not None:
            raise ValueError("center_crop has no resize_to: use shorter_side")
        if not self.antialias and self.filter not in SAMPLED:
            raise ValueError(f"the filter {self.filter} needs antialias: only {', '.join(SAMPLED)} do without")
        if self.arithmetic == "torch" and not has_torch_arithmetic(self.rule, self.filter, self.antialias):
            filters = ", ".join(OF_TORCH)
            raise ValueError(f"the arithmetic torch is that of {filters} with antialias, not of center_crop")
        return self


def has_torch_arithmetic(rule: Rule, name: Filter, antialias: bool) -> bool:  # noqa: FBT001  # fields of `Resize`
    """Whether torch's resize of tensors of bytes follows this rule with this filter."""
    return antialias and name in OF_TORCH and rule != "center_crop"


class Normalisation(_Strict):
    """(x * scale - mean) / std by channel, of the channels in the network's order.

    `scale`: `unit` takes pixels of 0 to 1, `byte` of 0 to 255; `mean` and `std` are in these units and in the order
    `channel_order`.
    """

    channel_order: Literal["rgb", "bgr"] = "rgb"
    scale: Literal["unit", "byte"] = "unit"
    mean: list[float] = Field([0.0, 0.0, 0.0], min_length=1, max_length=3)
    std: list[Annotated[float, Field(gt=0)]] = Field([1.0, 1.0, 1.0], min_length=1, max_length=3)

    @model_validator(mode="after")
    def _by_channel(self) -> Normalisation:
        if len(self.mean) != len(self.std):
            raise ValueError(f"{len(self.mean)} means and {len(self.std)} deviations")
        if self.channel_order == "bgr" and len(self.mean) != 3:
            raise ValueError("the channel order bgr needs three channels")
        return self

    def of_unit_pixels(self) -> tuple[list[float], list[float]]:
        """Mean and deviation, in the network's channel order, of pixels in [0, 1]."""
        by = 255.0 if self.scale == "byte" else 1.0
        return [m / by for m in self.mean], [s / by for s in self.std]

    def apply(self, rows: np.ndarray) -> np.ndarray:
        """Pixels in [0, 1], RGB, float32 (N, C, H, W) as the network takes them; the same array if nothing changes."""
        mean, std = (np.asarray(values, np.float32)[:, None, None] for values in (self.mean, self.std))
        if self.channel_order == "rgb" and self.scale == "unit" and not mean.any() and (std == 1).all():
            return rows
        ordered = rows[:, ::-1] if self.channel_order == "bgr" else rows
        factor = np.float32(255.0 if self.scale == "byte" else 1.0) / std
        return np.asarray(ordered * factor - mean / std, np.float32)


class Preprocessing(_Strict):
    """All that a model's file, or its user, states about its input; `side` is None where the size is left open."""

    side: int | None = Field(None, ge=8, le=1024)
    resize: Resize = Resize()
    normalise: Normalisation = Normalisation()
    source: str = "default"
    """Where it was read, for people."""

    @property
    def served(self) -> Resize:
        """The resize rule with large JPEG files decoded at a fraction, in calibration as in serving."""
        return self.resize.model_copy(update={"reduced": True})
