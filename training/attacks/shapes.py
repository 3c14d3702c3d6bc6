"""Patches that are no squares: strips, oblongs and pairs, of noisy or of smooth content, at the best of a few places.

As `training.attacks.patch`, with the pixels of any mask free: noisy content has a colour for each pixel, smooth content
is a coarse grid of colours over the whole image, blown up bilinearly, of which the mask shows a part.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from training.attacks.obstacles import turned
from training.attacks.patch import Kind, optimised
from training.attacks.unaware import Attack, Made, Scene
from training.util.signatures import Predict

CELLS = 5
"""Cells a side of smooth content: a colour for each fifth of the image."""

Outline = Callable[[Tensor, torch.Generator | None], Tensor]
"""Images (N, C, H, W) to booleans (N, H, W): where each is covered, at random."""


@dataclass(frozen=True)
class Shapes:
    """Covers of N images: colours (N, C, rows, columns) in [0, 1] over the whole image, where they show (N, H, W)."""

    colours: Tensor
    shown: Tensor

    def on(self, x: Tensor) -> Tensor:
        """Images (N, C, H, W) with the covers on them; differentiable in the colours and in `x`."""
        content = F.interpolate(self.colours, x.shape[2:], mode="bilinear", align_corners=True)
        return torch.where(self.shown[:, None], content, x)

    def painted(self, colours: Tensor) -> Shapes:
        """The same places in other colours."""
        return Shapes(colours, self.shown)

    def where(self, chosen: Tensor, other: Shapes) -> Shapes:
        """These covers where `chosen` (N,), the `other` ones elsewhere."""
        return Shapes(
            torch.where(chosen[:, None, None, None], self.colours, other.colours),
            torch.where(chosen[:, None, None], self.shown, other.shown),
        )


def shape_attack(
    predict: Predict,
    x: Tensor,
    y: Tensor,
    *,
    outline: Outline,
    kind: Kind,
    places: int = 6,
    probe_steps: int = 8,
    steps: int = 40,
    step_size: float = 0.1,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor]:
    """Covered images (N, C, H, W) and the covers' masks, booleans (N, H, W); settings as in `patch_attack`."""

    def draw() -> Shapes:
        size = x.shape[2:] if kind == "noisy" else (CELLS, CELLS)
        colours = torch.rand(len(x), x.shape[1], *size, generator=generator).to(x)
        return Shapes(colours, outline(x, generator))

    best = optimised(predict, x, y, draw, places=places, probe_steps=probe_steps, steps=steps, step_size=step_size)
    return best.on(x), best.shown


def strip(x: Tensor, generator: torch.Generator | None) -> Tensor:
    """0.09 by 0.5 of the side (3 x 16 pixels at 32), lying or standing."""
    side = min(x.shape[2:])
    return turned(x, max(1, round(0.09 * side)), side // 2, generator)


def oblong(x: Tensor, generator: torch.Generator | None) -> Tensor:
    """0.16 by 0.31 of the side (5 x 10 pixels at 32), lying or standing."""
    side = min(x.shape[2:])
    return turned(x, max(1, round(0.16 * side)), round(0.31 * side), generator)


def pair(x: Tensor, generator: torch.Generator | None) -> Tensor:
    """Two squares of an eighth of the side (4 x 4 pixels at 32)."""
    side = max(1, min(x.shape[2:]) // 8)
    return turned(x, side, side, generator) | turned(x, side, side, generator)


def _made(scene: Scene, x: Tensor, y: Tensor, *, outline: Outline, kind: Kind) -> Made:
    covered, _ = shape_attack(scene.network, x, y, outline=outline, kind=kind, generator=scene.generator)
    return Made(covered)


def _attack(name: str, title: str, outline: Outline, kind: Kind) -> Attack:
    return Attack(name, title, partial(_made, outline=outline, kind=kind), "3", count="patched", seconds=0.45)


CARD = (
    _attack("strip", "noisy strip, half of the side long and 9 % wide", strip, "noisy"),
    _attack("strip_smooth", "smooth strip, half of the side long and 9 % wide", strip, "low_frequency"),
    _attack("oblong_smooth", "smooth oblong of 5 % of the image", oblong, "low_frequency"),
    _attack("pair", "two noisy squares of 1.6 % each", pair, "noisy"),
)
