"""Attacks with tape, paint, shadow and weather: drawn at random, and the worst of a few draws is taken.

Nothing here is optimised by gradients: each family draws its parameters at random and keeps what the answering network
likes least. Large, coherent changes of content, which a defence made for noise is blind to. After stickers on signs
(Eykholt et al. 2018, arXiv 1707.08945), shadows (Zhong et al. 2022, arXiv 2203.03818), casts of colour (Hosseini and
Poovendran 2018, arXiv 1804.00499) and few pixels (Croce et al. 2022, arXiv 2006.12834: here random search over places
and corner colours, ten pixels of a thousand).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from training.attacks.margin import margin
from training.attacks.unaware import Attack, Made, Scene
from training.util import random_draws
from training.util.signatures import Predict

Draw = Callable[[Tensor, torch.Generator | None], Tensor]
"""Images (N, C, H, W) in [0, 1] to the same with an obstacle each, at random."""

SPARSE_QUERIES = 300
_DARK, _LIGHT = 0.04, 0.96


def uniform(x: Tensor, shape: tuple[int, ...], low: float, high: float, generator: torch.Generator | None) -> Tensor:
    """Random numbers (N, *shape) of [low, high), on the device of `x` (N, ...)."""
    return (low + (high - low) * random_draws.uniform((len(x), *shape), generator)).to(x)


def rectangles(x: Tensor, height: Tensor, width: Tensor, generator: torch.Generator | None) -> Tensor:
    """Booleans (N, H, W): a rectangle in each image at a random place, `height` and `width` (N,) pixels."""
    h, w = x.shape[2:]
    top = (uniform(x, (), 0, 1, generator) * (h - height + 1)).floor()
    left = (uniform(x, (), 0, 1, generator) * (w - width + 1)).floor()
    rows, columns = torch.arange(h, device=x.device), torch.arange(w, device=x.device)
    inside = (rows >= top[:, None]) & (rows < (top + height)[:, None])
    across = (columns >= left[:, None]) & (columns < (left + width)[:, None])
    return inside[:, :, None] & across[:, None, :]


def turned(x: Tensor, thick: int, long: int, generator: torch.Generator | None) -> Tensor:
    """Booleans (N, H, W): a bar of `thick` by `long` pixels in each image, lying or standing, at a random place."""
    lying = uniform(x, (), 0, 1, generator) < 0.5
    height = torch.where(lying, thick, long)
    return rectangles(x, height, thick + long - height, generator)


def bars(x: Tensor, generator: torch.Generator | None) -> Tensor:
    """A black and a white bar, an eighth of the side by a half."""
    side = min(x.shape[2:])
    for shade in (_DARK, _LIGHT):
        mask = turned(x, max(1, side // 8), side // 2, generator)
        x = torch.where(mask[:, None], shade, x)
    return x


def dull_sticker(x: Tensor, generator: torch.Generator | None) -> Tensor:
    """A square of 0.19 of the side (6 x 6 pixels at 32) in one greyish colour."""
    side = torch.full((len(x),), round(0.19 * min(x.shape[2:])), device=x.device)
    grey = uniform(x, (1,), 0.2, 0.7, generator) + uniform(x, (x.shape[1],), -0.06, 0.06, generator)
    return torch.where(rectangles(x, side, side, generator)[:, None], grey[:, :, None, None], x)


def half_shadow(x: Tensor, generator: torch.Generator | None) -> Tensor:
    """The half-plane beyond a line near the middle, darkened to 0.25 to 0.5 of its brightness."""
    h, w = x.shape[2:]
    angle, offset = uniform(x, (1, 1), 0, 2 * math.pi, generator), uniform(x, (1, 1), -1 / 6, 1 / 6, generator)
    y = (torch.arange(h, device=x.device) / h - 0.5)[None, :, None]
    along = (torch.arange(w, device=x.device) / w - 0.5)[None, None, :]
    beyond = along * angle.cos() + y * angle.sin() > offset
    return torch.where(beyond[:, None], x * uniform(x, (1, 1, 1), 0.25, 0.5, generator), x)


def colour_cast(x: Tensor, generator: torch.Generator | None) -> Tensor:
    """Each channel times 0.4 to 1.4: lamps, dirt and paint over the lens."""
    return (x * uniform(x, (x.shape[1], 1, 1), 0.4, 1.4, generator)).clamp(0, 1)


def rain(x: Tensor, generator: torch.Generator | None, *, streaks: int = 14) -> Tensor:
    """Bright streaks along one slanted direction, a quarter to a half of the side long, half transparent."""
    n, _, h, w = x.shape
    slant = uniform(x, (1,), -0.4, 0.4, generator)
    begin, across = uniform(x, (streaks,), -0.3, 1, generator), uniform(x, (streaks,), 0, 1, generator)
    long = uniform(x, (streaks,), 0.25, 0.5, generator)
    y = (torch.arange(h, device=x.device) + 0.5) / h
    columns = torch.arange(w, device=x.device)
    wet = torch.zeros(n, h, w, dtype=torch.bool, device=x.device)
    for s in range(streaks):
        inside = (y >= begin[:, s, None]) & (y < (begin + long)[:, s, None])
        at = ((across[:, s, None] + slant * (y - begin[:, s, None])) * w).floor()
        wet |= inside[:, :, None] & (columns == at[:, :, None])
    return torch.where(wet[:, None], 0.45 * x + 0.5, x)


def worst_of(
    predict: Predict, x: Tensor, y: Tensor, draw: Draw, tries: int, generator: torch.Generator | None = None
) -> Tensor:
    """Of `tries` draws, the one with the smallest margin for each image x (N, C, H, W) with labels y (N,)."""
    if tries < 1:
        raise ValueError(f"{tries} tries: at least one is needed")
    best, lowest = x, torch.full((len(x),), torch.inf, device=x.device)
    for _ in range(tries):
        drawn = draw(x, generator)
        with torch.no_grad():
            now = margin(predict(drawn).float(), y)
        better = now < lowest
        best, lowest = torch.where(better[:, None, None, None], drawn, best), torch.minimum(now, lowest)
    return best


def few_pixels(
    predict: Predict,
    x: Tensor,
    y: Tensor,
    *,
    count: int,
    queries: int = SPARSE_QUERIES,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Random search over `count` pixels in corner colours (Sparse-RS): a pixel moves, or some change colour.

    x (N, C, H, W), y (N,); `queries` of the network for each image.
    """
    n, channels, h, w = x.shape
    if not 1 <= count <= h * w:
        raise ValueError(f"{count} pixels on images of {h} x {w}")
    places = torch.rand(n, h * w, generator=generator).argsort(1)[:, :count].to(x.device)
    colours = (torch.rand(n, channels, count, generator=generator) < 0.5).to(x)

    def painted(where: Tensor, paint: Tensor) -> Tensor:
        return x.flatten(2).scatter(2, where[:, None].expand(-1, channels, -1), paint).reshape(x.shape)

    best, lowest = painted(places, colours), torch.full((n,), torch.inf, device=x.device)
    for query in range(queries):
        moved, paint = places.clone(), colours.clone()
        if query:
            change = max(1, round(count * (1 - query / queries) * 0.5))
            which = torch.rand(n, count, generator=generator).argsort(1)[:, :change].to(x.device)
            elsewhere = torch.rand(n, h * w, generator=generator).to(x.device).scatter(1, places, 2.0)
            moved = places.scatter(1, which, elsewhere.argsort(1)[:, :change])
            fresh = (torch.rand(n, channels, change, generator=generator) < 0.5).to(x)
            paint = colours.scatter(2, which[:, None].expand(-1, channels, -1), fresh)
        drawn = painted(moved, paint)
        with torch.no_grad():
            now = margin(predict(drawn).float(), y)
        better = now < lowest
        lowest = torch.minimum(now, lowest)
        places = torch.where(better[:, None], moved, places)
        colours = torch.where(better[:, None, None], paint, colours)
        best = torch.where(better[:, None, None, None], drawn, best)
    return best


def _worst(scene: Scene, x: Tensor, y: Tensor, *, draw: Draw, tries: int) -> Made:
    return Made(worst_of(scene.network, x, y, draw, tries, scene.generator))


def _sparse(scene: Scene, x: Tensor, y: Tensor) -> Made:
    count = max(1, round(0.01 * x.shape[2] * x.shape[3]))
    return Made(few_pixels(scene.network, x, y, count=count, generator=scene.generator))


def _attack(name: str, title: str, draw: Draw, tries: int) -> Attack:
    make = partial(_worst, draw=draw, tries=tries)
    return Attack(name, f"{title}, worst of {tries}", make, "3", count="patched", seconds=0.004 * tries)


CARD = (
    _attack("bars", "a black and a white bar", bars, 40),
    _attack("dull_sticker", "dull sticker of 3.5 % of the image", dull_sticker, 30),
    _attack("half_shadow", "half shadow", half_shadow, 20),
    _attack("colour_cast", "colour cast", colour_cast, 20),
    _attack("rain", "rain", rain, 8),
    Attack(
        "sparse",
        f"1 % of the pixels, {SPARSE_QUERIES} queries",
        _sparse,
        "3",
        count="patched",
        seconds=0.004 * SPARSE_QUERIES,
    ),
)
