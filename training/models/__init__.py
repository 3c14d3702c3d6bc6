"""Networks by name; all take pixels in [0, 1] and normalise inside."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from training.models.resnet import SmallResNet


class ModelSpec(BaseModel):
    """What `build_model` needs: architecture, width of the first stage, residual blocks by stage, stem stride."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    arch: Annotated[str, Field(pattern="^small_resnet$")] = "small_resnet"
    width: int = Field(32, ge=4, le=256)
    blocks: tuple[int, ...] = (1, 1, 1)
    stem_stride: int = Field(1, ge=1, le=4)


def build_model(spec: ModelSpec, *, classes: int, mean: list[float], std: list[float]) -> SmallResNet:
    """A network with random weights; `mean` and `std` are of the training pixels in [0, 1], by channel."""
    return SmallResNet(
        classes=classes, width=spec.width, blocks=spec.blocks, stem_stride=spec.stem_stride, mean=mean, std=std
    )
