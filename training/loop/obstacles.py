"""Obstacles in training: a share of each batch is seen behind stickers, bars, strips, shadows, casts of colour or rain.

They are drawn at random, without a search, before the stage's adversary adds its own: content that a person can change,
beside small changes of every pixel. The families are those of `training.attacks.obstacles`, and covers of noisy and of
smooth content in the outlines of `training.attacks.shapes`; a card that attacks by them says so.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from training.attacks.obstacles import Draw, bars, colour_cast, dull_sticker, half_shadow, rain, turned, uniform
from training.attacks.shapes import CELLS, oblong, pair, strip
from training.util import random_draws


def noisy_cover(x: Tensor, generator: Generator | None) -> Tensor:
    """A strip, an oblong, a square or two with a random colour for each pixel, on images (N, C, H, W) in [0, 1]."""
    return torch.where(outline(x, generator)[:, None], uniform(x, tuple(x.shape[1:]), 0, 1, generator), x)


def smooth_cover(x: Tensor, generator: Generator | None) -> Tensor:
    """The same, with a colour for each fifth of the image, blown up bilinearly."""
    colours = uniform(x, (x.shape[1], CELLS, CELLS), 0, 1, generator)
    content = F.interpolate(colours, x.shape[2:], mode="bilinear", align_corners=True)
    return torch.where(outline(x, generator)[:, None], content, x)


def with_obstacles(x: Tensor, generator: Generator | None, *, fraction: float) -> Tensor:
    """Images (N, C, H, W) in [0, 1], of which a random `fraction` has one obstacle each; the families are as likely."""
    chosen = random_draws.uniform((len(x),), generator) < fraction
    family = torch.where(chosen, random_draws.integers(len(_FAMILIES), len(x), generator), -1).to(x.device)
    made = x
    # Every family draws for every image: numbers, and so the batch, do not depend on how processes share it.
    for k, draw in enumerate(_FAMILIES):
        made = torch.where((family == k)[:, None, None, None], draw(x, generator), made)
    return made


def outline(x: Tensor, generator: Generator | None) -> Tensor:
    """Booleans (N, H, W): a strip, an oblong, a square of 0.19 of the side, or two smaller ones; each as likely."""
    which = uniform(x, (1, 1), 0, len(_OUTLINES), generator).floor()
    shown = torch.zeros(len(x), *x.shape[2:], dtype=torch.bool, device=x.device)
    for k, draw in enumerate(_OUTLINES):
        shown |= draw(x, generator) & (which == k)
    return shown


def _square(x: Tensor, generator: Generator | None) -> Tensor:
    side = round(0.19 * min(x.shape[2:]))
    return turned(x, side, side, generator)


_OUTLINES = (strip, oblong, _square, pair)
_FAMILIES: tuple[Draw, ...] = (bars, dull_sticker, half_shadow, colour_cast, rain, noisy_cover, smooth_cover)
