"""Networks by name; all take pixels in [0, 1] and normalise inside."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from pydantic import BaseModel, ConfigDict, Field, field_validator

from training.errors import TrainingError
from training.models.averaged import Averaged
from training.models.efficientnet_lite import EfficientNetLite0
from training.models.forms import WRITTEN, is_form
from training.models.named import named_network
from training.models.network import Network
from training.models.resnet import SmallResNet
from training.models.small_field import SmallField
from training.models.vgg import Vgg16


class ModelSpec(BaseModel):
    """What `build_model` needs: the architecture, and its sizes where the architecture leaves them open.

    `arch` is a key of `ARCHS`, or a network in one of the forms of `training.models.forms`. `width` (of the first
    stage), `blocks` (residual ones, by stage) and `stem_stride` are for those of `ARCHS`; VGG-16 has a width alone.
    With a `side` the network sees images averaged down to that many pixels (`Averaged`).
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    arch: str = "small_resnet"
    width: int = Field(32, ge=4, le=256)
    blocks: tuple[int, ...] = (1, 1, 1)
    stem_stride: int = Field(1, ge=1, le=4)
    side: int | None = Field(None, ge=8, le=512, description="pixels a side that images are averaged down to")
    logarithm: float | None = Field(
        None, gt=0, le=1, description="c, where pixels x enter as log(1 + x / c): exposure shifts them (small_field)"
    )

    @field_validator("arch")
    @classmethod
    def _known(cls, arch: str) -> str:
        if arch not in ARCHS and not is_form(arch):
            raise ValueError(f"unknown architecture; use {', '.join(ARCHS)}, {WRITTEN}")
        return arch


class Builder(Protocol):
    """Makes a network with random weights for images of `side` x `side`."""

    def __call__(self, spec: ModelSpec, *, classes: int, mean: list[float], std: list[float], side: int) -> Network: ...


def _small_resnet(
    spec: ModelSpec,
    *,
    classes: int,
    mean: list[float],
    std: list[float],
    side: int,  # noqa: ARG001  # any size will do
) -> SmallResNet:
    return SmallResNet(
        classes=classes, width=spec.width, blocks=spec.blocks, stem_stride=spec.stem_stride, mean=mean, std=std
    )


def _vgg16_bn(
    spec: ModelSpec,
    *,
    classes: int,
    mean: list[float],
    std: list[float],
    side: int,  # noqa: ARG001  # 16 and more
) -> Vgg16:
    return Vgg16(classes=classes, width=spec.width, mean=mean, std=std)


def _efficientnet_lite0(
    spec: ModelSpec,  # noqa: ARG001  # all its sizes are the paper's
    *,
    classes: int,
    mean: list[float],
    std: list[float],
    side: int,  # noqa: ARG001  # 32 and more
) -> EfficientNetLite0:
    return EfficientNetLite0(classes=classes, mean=mean, std=std)


def _small_field(spec: ModelSpec, *, classes: int, mean: list[float], std: list[float], side: int) -> SmallField:
    return SmallField(classes=classes, width=spec.width, side=side, mean=mean, std=std, logarithm=spec.logarithm)


ARCHS: dict[str, Builder] = {
    "small_resnet": _small_resnet,
    "small_field": _small_field,
    "vgg16_bn": _vgg16_bn,
    "efficientnet_lite0": _efficientnet_lite0,
}


def build_model(
    spec: ModelSpec,
    *,
    classes: int,
    mean: list[float],
    std: list[float],
    side: int = 32,
    reverse: bool = False,
    kept: Path | None = None,
    layers: Mapping[str, int] | None = None,
) -> Network:
    """A network with random weights; `mean` and `std` are of the training pixels in [0, 1], by channel.

    `side` is the images' (square); networks that take any size only look at it to find their layers, which `layers`
    (names and channels) states if they are known. `kept` is the folder in which a bundle keeps the files of an
    architecture that came as one, and `reverse` gives such a network BGR. Raises `TrainingError` if a network named
    from outside cannot be made, or does not take such images, or if images are smaller than the side that they are to
    be averaged down to.
    """
    if spec.side is not None:
        if spec.side > side:
            raise TrainingError(f"images of {side} pixels a side cannot be averaged down to {spec.side}; choose fewer")
        inner = spec.model_copy(update={"side": None})
        low = build_model(inner, classes=classes, mean=mean, std=std, side=spec.side, kept=kept, layers=layers)
        return Averaged(low, spec.side)
    if spec.arch in ARCHS:
        return ARCHS[spec.arch](spec, classes=classes, mean=mean, std=std, side=side)
    return named_network(
        spec.arch, classes=classes, mean=mean, std=std, side=side, reverse=reverse, kept=kept, layers=layers
    )
