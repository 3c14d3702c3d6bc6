"""Random affine and colour changes of a batch, applied alike to images and to maps that belong to them."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from training.util.random_draws import integers, uniform


class Augmentation(BaseModel):
    """Ranges of the random changes: degrees, share of the side, relative scale, relative brightness and contrast."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    rotate: float = Field(8.0, ge=0, le=180)
    translate: float = Field(0.08, ge=0, le=0.5)
    scale: float = Field(0.12, ge=0, lt=1)
    shear: float = Field(0.08, ge=0, lt=1)
    flip: bool = False
    brightness: float = Field(0.3, ge=0, lt=1)
    contrast: float = Field(0.3, ge=0, lt=1)


def augment(
    x: Tensor, settings: Augmentation, generator: torch.Generator, maps: Tensor | None = None
) -> tuple[Tensor, Tensor | None]:
    """Augment images (N, C, H, W) in [0, 1] and, by the same geometry, maps (N, M, H, W); colours of `x` only."""
    n = len(x)

    def within(half: float) -> Tensor:
        return (uniform((n,), generator) * 2 - 1) * half

    angle, zoom = within(math.radians(settings.rotate)), 1 + within(settings.scale)
    shear, dx, dy = within(settings.shear), within(2 * settings.translate), within(2 * settings.translate)
    mirror = torch.where(uniform((n,), generator) < 0.5, -1.0, 1.0) if settings.flip else torch.ones(n)
    cos, sin = zoom * angle.cos(), zoom * angle.sin()
    theta = torch.stack([torch.stack([cos * mirror, -sin + shear, dx], 1), torch.stack([sin * mirror, cos, dy], 1)], 1)
    stacked = x if maps is None else torch.cat([x, maps], 1)
    grid = F.affine_grid(theta.to(x.device), list(stacked.shape), align_corners=False)
    moved = F.grid_sample(stacked, grid, mode="bilinear", padding_mode="border", align_corners=False)
    images, moved_maps = moved[:, : x.shape[1]], moved[:, x.shape[1] :]
    gain, offset = 1 + within(settings.contrast), within(settings.brightness) * 0.5
    gain, offset = (t.to(x.device)[:, None, None, None] for t in (gain, offset))
    mean = images.mean((1, 2, 3), keepdim=True)
    images = (images - mean) * gain + mean * (1 + 2 * offset)
    return images.clamp(0, 1), (None if maps is None else moved_maps)


def mask_windows(x: Tensor, generator: torch.Generator, *, share: float, count: int, fraction: float) -> Tensor:
    """Mask augmentation: inpaint 1..`count` random square windows of `share` of the side in a `fraction` of the batch.

    Teaches the network to answer from what neutralisation leaves (`training.imaging.inpaint`). Images (N, C, H, W).
    """
    from training.imaging.inpaint import inpaint

    n, _, h, w = x.shape
    side_h, side_w = max(1, round(share * h)), max(1, round(share * w))
    rows, columns = torch.arange(h), torch.arange(w)
    mask = torch.zeros(n, h, w)
    for number in range(count):
        top = integers(h - side_h + 1, n, generator)[:, None]
        left = integers(w - side_w + 1, n, generator)[:, None]
        in_rows, in_columns = (rows >= top) & (rows < top + side_h), (columns >= left) & (columns < left + side_w)
        inside = in_rows[:, :, None] & in_columns[:, None]
        use = uniform((n,), generator) < (1.0 if number == 0 else 0.5)
        mask = torch.maximum(mask, inside.float() * use[:, None, None])
    chosen = uniform((n,), generator) < fraction
    return inpaint(x, (mask * chosen[:, None, None].float()).to(x.device))
