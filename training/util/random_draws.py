"""Random numbers by image, the same whether one process has the whole batch or several have a share of it each.

Whoever draws a number for every image of a batch does so here, on the CPU, with a generator of
`training.util.module_modes.seeded`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Generator, Tensor


class SharedGenerator(Generator):
    """The generator of one of `world` processes, all seeded alike, whose batches are rows `rank`, `rank` + `world`, ...

    of one batch: the functions of this module draw for the whole of it and return the rows of the process.
    """

    rank: int = 0
    world: int = 1


def shared(generator: Generator, *, rank: int, world: int) -> SharedGenerator:
    """A copy of `generator` for process `rank` of `world`."""
    copy = SharedGenerator()
    copy.set_state(generator.get_state())
    copy.rank, copy.world = rank, world
    return copy


def uniform(shape: Sequence[int], generator: Generator | None = None, *, dtype: torch.dtype = torch.float32) -> Tensor:
    """Uniform in [0, 1), (N, ...) for a batch of N images."""
    return _rows(lambda size: torch.rand(size, generator=generator, dtype=dtype), shape, generator)


def normal(shape: Sequence[int], generator: Generator | None = None, *, dtype: torch.dtype = torch.float32) -> Tensor:
    """Standard normal, (N, ...) for a batch of N images."""
    return _rows(lambda size: torch.randn(size, generator=generator, dtype=dtype), shape, generator)


def integers(high: int, n: int, generator: Generator | None = None) -> Tensor:
    """Uniform in 0..`high` - 1, int64 (N,) for a batch of N = `n` images."""
    return _rows(lambda size: torch.randint(0, high, size, generator=generator), (n,), generator)


def _rows(draw: Callable[[list[int]], Tensor], shape: Sequence[int], generator: Generator | None) -> Tensor:
    if not isinstance(generator, SharedGenerator):
        return draw(list(shape))
    return draw([shape[0] * generator.world, *shape[1:]])[generator.rank :: generator.world]
