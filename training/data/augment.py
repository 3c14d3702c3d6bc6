"""Random affine and colour changes of a batch, applied alike to images and to maps that belong to them."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from training.util.random_draws import integers, uniform


class Augmentation(BaseModel):
    """Ranges of the random changes: degrees, share of the side, relative scale, relative brightness and contrast.

    `colour` is the relative range of a gain for each channel, `exposure` that of one for all, in stops: at 2, images
    are a quarter to four times as bright, cut off at white, as those of a camera that is wrongly exposed. `erase` is
    the share of images that lose a rectangle, of 2 to 15 % of the area, to one random colour (Zhong et al. 2017, arXiv
    1708.04896).
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    rotate: float = Field(8.0, ge=0, le=180)
    translate: float = Field(0.08, ge=0, le=0.5)
    scale: float = Field(0.12, ge=0, lt=1)
    shear: float = Field(0.08, ge=0, lt=1)
    flip: bool = False
    brightness: float = Field(0.3, ge=0, lt=1)
    contrast: float = Field(0.3, ge=0, lt=1)
    colour: float = Field(0.0, ge=0, lt=1)
    exposure: float = Field(0.0, ge=0, le=4)
    erase: float = Field(0.0, ge=0, le=1)


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
    # These draw numbers only where they are asked for: recipes without them repeat as they were.
    if settings.colour:
        images = images * (1 + settings.colour * (2 * uniform(images.shape[:2], generator) - 1)).to(x)[:, :, None, None]
    if settings.exposure:
        images = images * torch.exp2(within(settings.exposure)).to(x)[:, None, None, None]
    images = images.clamp(0, 1)
    if settings.erase:
        images = _erased(images, generator, share=settings.erase)
    return images, (None if maps is None else moved_maps)


def _erased(x: Tensor, generator: torch.Generator, *, share: float) -> Tensor:
    """`x` (N, C, H, W) with a rectangle of one random colour in a random `share` of the images, cut off at borders."""
    n, channels, h, w = x.shape
    area, shape, top, left, chance = (uniform((n,), generator).to(x.device) for _ in range(5))
    area, shape = 0.02 + 0.13 * area, torch.exp((2 * shape - 1) * math.log(3))
    tall, wide = (area * shape).sqrt() * h, (area / shape).sqrt() * w
    rows, columns = torch.arange(h, device=x.device), torch.arange(w, device=x.device)
    top, left = (top * (h + 1) - tall / 2)[:, None], (left * (w + 1) - wide / 2)[:, None]
    in_rows, in_columns = (
        (rows >= top) & (rows < top + tall[:, None]),
        (columns >= left) & (columns < left + wide[:, None]),
    )
    hidden = in_rows[:, :, None] & in_columns[:, None] & (chance < share)[:, None, None]
    return torch.where(hidden[:, None], uniform((n, channels, 1, 1), generator).to(x), x)


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
