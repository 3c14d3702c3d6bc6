"""RayS (Chen and Gu 2020, arXiv 2006.12792): an attack on an oracle that reveals only whether it is fooled.

The perturbation is a radius along a vector of signs. Signs of ever smaller blocks are flipped; a flip is kept if the
oracle is still fooled at the radius reached so far, which is then shortened by bisection along the new vector.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from itertools import pairwise

import torch
from torch import Tensor

from training.attacks.square import LEVELS, Grid, QueriesSpent, QueryResult
from training.util.signatures import Progress, silent

# Images (M, C, H, W) in [0, 1] and their labels (M,) to whether each is a success (M,) bool.
Fooled = Callable[[Tensor, Tensor], Tensor]


def rays(
    fooled: Fooled,
    x: Tensor,
    y: Tensor,
    *,
    eps: float,
    queries: int = 1000,
    confirmed: Fooled | None = None,
    generator: torch.Generator | None = None,
    progress: Progress = silent,
) -> QueryResult:
    """Shorten the Linf distance at which `fooled` answers yes until it is at most `eps`; `queries` at most by image.

    Every image asked about is a multiple of 1/255 (`x` has to be), `eps` is rounded down to one. Where the caller knows
    more than the attacker (such as whether the answer was flagged), `confirmed` returns which fooling images within
    `eps` are successes; the search continues at smaller radii until one is. Vectors begin as all +1 or all -1 by
    image, at random. `QueriesSpent` from `fooled` ends the attack early.
    """
    if eps < 0 or queries < 1:
        raise ValueError(f"eps {eps}, queries {queries}: eps >= 0, queries >= 1 are needed")
    run = _Run(fooled, confirmed, x, y, eps, queries, progress)
    with suppress(QueriesSpent):
        run.go(generator)
    return QueryResult(run.adversarial, run.succeeded, run.asked)


class _Run:
    """The state of an attack: `signs` and `radius` (in steps of 1/255, 256 where nothing has fooled yet) by image."""

    def __init__(
        self,
        fooled: Fooled,
        confirmed: Fooled | None,
        x: Tensor,
        y: Tensor,
        eps: float,
        queries: int,
        progress: Progress,
    ) -> None:
        self.fooled, self.confirmed, self.y = fooled, confirmed, y
        self.queries, self.progress = queries, progress
        self.grid = Grid(x, eps, eight_bit=True)
        self.adversarial = x.clone()
        self.succeeded = torch.zeros(len(x), dtype=torch.bool, device=x.device)
        self.asked = torch.zeros(len(x), dtype=torch.long, device=x.device)
        self.radius = torch.full((len(x),), LEVELS + 1.0, device=x.device)

    def go(self, generator: torch.Generator | None) -> None:
        shape = self.adversarial.shape
        self.signs = self.grid.signs((shape[0], 1, 1, 1), generator).expand(shape).clone()
        every = torch.arange(shape[0], device=self.signs.device)
        self._shorten(every, self.signs)
        size, level = self.signs[0].numel(), 0
        while len(self._alive(every)):
            blocks = min(2**level, size)
            edges = [size * i // blocks for i in range(blocks + 1)]
            for start, stop in pairwise(edges):
                rows = self._alive(every)
                if len(rows) == 0:
                    return
                flipped = self.signs[rows].flatten(1)
                flipped[:, start:stop] *= -1
                self._shorten(rows, flipped.view(len(rows), *shape[1:]))
            level = level + 1 if blocks < size else 0

    def _alive(self, rows: Tensor) -> Tensor:
        return rows[~self.succeeded[rows] & (self.asked[rows] < self.queries) & (self.radius[rows] > 0)]

    def _shorten(self, rows: Tensor, signs: Tensor) -> None:
        """Take `signs` for `rows` where they fool at the radius reached (or at all), and bisect the radius there."""
        taken = self._ask(rows, signs, self.radius[rows].clamp_max(LEVELS))
        rows, signs = rows[taken], signs[taken]
        self.signs[rows] = signs
        low, high = torch.zeros(len(rows), device=signs.device), self.radius[rows].clamp_max(LEVELS)
        self.radius[rows] = high
        while len(open_ := torch.flatten(torch.nonzero((high - low > 1) & self._going(rows)))):
            middle = ((low[open_] + high[open_]) / 2).floor()
            hit = self._ask(rows[open_], signs[open_], middle)
            high[open_], low[open_] = torch.where(hit, middle, high[open_]), torch.where(hit, low[open_], middle)
            self.radius[rows] = high

    def _going(self, rows: Tensor) -> Tensor:
        return ~self.succeeded[rows] & (self.asked[rows] < self.queries)

    def _ask(self, rows: Tensor, signs: Tensor, radius: Tensor) -> Tensor:
        images, labels = self.grid.image(signs, rows, radius[:, None, None, None]), self.y[rows]
        hit = self.fooled(images, labels).to(torch.bool)
        self.asked[rows] += 1
        won = hit & (radius <= self.grid.step.to(radius))
        if self.confirmed is not None and won.any():
            won[won.clone()] = self.confirmed(images[won], labels[won]).to(torch.bool)
        self.adversarial[rows[won]], self.succeeded[rows[won]] = images[won], True
        self.progress(int(self.asked.max()), self.queries)
        return hit
