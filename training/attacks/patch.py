"""Adversarial patches: a square of free pixels at the best of several places (Brown et al. 2017, arXiv 1712.09665).

Location-optimised: several random places are tried for a few steps, the best one is worked on to the end. A noisy patch
has a free colour for each pixel; a low-frequency one is a coarse grid of colours, blown up bilinearly, which detectors
of busy regions don't see.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal, Protocol, Self, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from training.attacks.margin import margin
from training.attacks.unaware import Attack, Made, Scene
from training.util.signatures import Predict

Kind = Literal["noisy", "low_frequency"]
GRID = 3


@dataclass(frozen=True)
class Patches:
    """A square on each of N images: colours (N, C, cells, cells) in [0, 1], upper left corners (N,), side."""

    colours: Tensor
    top: Tensor
    left: Tensor
    side: int

    def content(self) -> Tensor:
        """The square's pixels (N, C, side, side)."""
        return F.interpolate(self.colours, (self.side, self.side), mode="bilinear", align_corners=True)

    def on(self, x: Tensor) -> Tensor:
        """Images (N, C, H, W) with the patches on them; differentiable in the colours and in `x`."""
        images, rows, columns = self._where(x)
        patched = x.clone().movedim(1, -1)
        patched[images, rows, columns] = self.content().movedim(1, -1)
        return patched.movedim(-1, 1)

    def mask(self, x: Tensor) -> Tensor:
        """{0, 1} (N, H, W): where the patches lie on images like `x`."""
        mask = x.new_zeros(len(x), *x.shape[2:])
        mask[self._where(x)] = 1.0
        return mask

    def _where(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        steps = torch.arange(self.side, device=x.device)
        return (
            torch.arange(len(x), device=x.device)[:, None, None],
            (self.top[:, None] + steps)[:, :, None],
            (self.left[:, None] + steps)[:, None, :],
        )

    def painted(self, colours: Tensor) -> Patches:
        """The same places in other colours."""
        return Patches(colours, self.top, self.left, self.side)

    def take(self, rows: Tensor) -> Patches:
        """Those of `rows` (M,)."""
        return Patches(self.colours[rows], self.top[rows], self.left[rows], self.side)

    def where(self, chosen: Tensor, other: Patches) -> Patches:
        """These patches where `chosen` (N,), the `other` ones elsewhere."""
        return Patches(
            torch.where(chosen[:, None, None, None], self.colours, other.colours),
            torch.where(chosen, self.top, other.top),
            torch.where(chosen, self.left, other.left),
            self.side,
        )


def random_patches(x: Tensor, side: int, kind: Kind, generator: torch.Generator | None) -> Patches:
    """Uniformly random places and colours for images like `x` (N, C, H, W)."""
    n, channels, h, w = x.shape
    if not 1 <= side <= min(h, w):
        raise ValueError(f"a patch of {side} pixels on images of {h} x {w}: 1 to {min(h, w)} are possible")
    cells = side if kind == "noisy" else min(GRID, side)
    top = torch.randint(0, h - side + 1, (n,), generator=generator)
    left = torch.randint(0, w - side + 1, (n,), generator=generator)
    colours = torch.rand(n, channels, cells, cells, generator=generator)
    return Patches(colours.to(x), top.to(x.device), left.to(x.device), side)


def patch_attack(
    predict: Predict,
    x: Tensor,
    y: Tensor,
    *,
    side: int,
    kind: Kind = "noisy",
    places: int = 6,
    probe_steps: int = 8,
    steps: int = 50,
    step_size: float = 0.1,
    span: tuple[float, float] = (0.0, 1.0),
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor]:
    """Patched images (N, C, H, W) and the patches' masks {0, 1} (N, H, W). `side` is the patch's side in pixels.

    Colours stay within `span`: (0.25, 0.6), say, for a sticker in dull colours.

    Of `places` random places and colours, each tried for `probe_steps`, the one of the smallest margin is worked on for
    `steps` more. `low_frequency` patches are grids of 3 x 3 colours.
    """

    def draw() -> Patches:
        patches = random_patches(x, side, kind, generator)
        return patches.painted(span[0] + (span[1] - span[0]) * patches.colours)

    best = optimised(
        predict, x, y, draw, places=places, probe_steps=probe_steps, steps=steps, step_size=step_size, span=span
    )
    return best.on(x), best.mask(x)


class Cover(Protocol):
    """Something free in colour, at a place of its own on each of N images."""

    @property
    def colours(self) -> Tensor: ...

    def on(self, x: Tensor) -> Tensor: ...

    def painted(self, colours: Tensor) -> Self: ...

    def where(self, chosen: Tensor, other: Self) -> Self: ...


C = TypeVar("C", bound=Cover)


def optimised(
    predict: Predict,
    x: Tensor,
    y: Tensor,
    draw: Callable[[], C],
    *,
    places: int,
    probe_steps: int,
    steps: int,
    step_size: float,
    span: tuple[float, float] = (0.0, 1.0),
) -> C:
    """The best of `places` draws after `probe_steps` each, worked on for `steps` more; see `patch_attack`."""
    best: C | None = None
    lowest = torch.full((len(x),), torch.inf, device=x.device)
    for _ in range(places):
        cover, reached = _optimise(predict, x, y, draw(), probe_steps, step_size, span)
        best = cover if best is None else cover.where(reached < lowest, best)
        lowest = torch.minimum(lowest, reached)
    if best is None:
        raise ValueError("places 0: at least one is needed")
    return _optimise(predict, x, y, best, steps, step_size / 2, span)[0]


def _optimise(
    predict: Predict,
    x: Tensor,
    y: Tensor,
    patches: C,
    steps: int,
    step_size: float,
    span: tuple[float, float],
) -> tuple[C, Tensor]:
    """Signed gradient descent on the margin; the best patches seen and their margins (N,)."""
    best, lowest = patches, torch.full((len(x),), torch.inf, device=x.device)
    for _ in range(steps + 1):
        colours = patches.colours.detach().requires_grad_(True)
        now = margin(predict(patches.painted(colours).on(x)).float(), y)
        (gradient,) = torch.autograd.grad(now.sum(), colours)
        colours, now = colours.detach(), now.detach()
        best = patches.painted(colours).where(now < lowest, best)
        lowest = torch.minimum(lowest, now)
        patches = patches.painted((colours - step_size * gradient.sign()).clamp(*span))
    return best, lowest


def patch_side(height: int) -> int:
    """Side in pixels of the card's patches: about 5 % of an image of that height (7 pixels at 32)."""
    return round(0.22 * height)


def _made(scene: Scene, x: Tensor, y: Tensor, *, kind: Kind) -> Made:
    side = patch_side(x.shape[2])
    patched, mask = patch_attack(scene.network, x, y, side=side, kind=kind, generator=scene.generator)
    return Made(patched, {"mask": mask.cpu().numpy() > 0.5})


def _attack(name: str, title: str, kind: Kind) -> Attack:
    return Attack(name, title, partial(_made, kind=kind), "3", count="patched", seconds=0.45, local=True)


CARD = (
    _attack("patch", "noisy patch", "noisy"),
    _attack("patch_low", "low-frequency patch", "low_frequency"),
)
