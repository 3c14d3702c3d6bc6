from __future__ import annotations

import pytest
import torch

from training.attacks.pgd import training_pgd
from training.data.augment import Augmentation, augment, mask_windows
from training.losses.jacobian import random_directions
from training.util.module_modes import seeded
from training.util.random_draws import SharedGenerator, integers, normal, shared, uniform

N, WORLD = 12, 3
X = torch.rand(N, 3, 10, 10, generator=seeded(5))


def attack(x: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    y = torch.zeros(len(x), dtype=torch.int64)
    return training_pgd(lambda z: z.flatten(1)[:, :4], x, y, eps=0.1, steps=1, generator=generator)


def shares() -> list[SharedGenerator]:
    return [shared(seeded(0), rank=rank, world=WORLD) for rank in range(WORLD)]


def joined(parts: list[torch.Tensor]) -> torch.Tensor:
    """The batch of which process `rank` has the rows rank, rank + world, ..."""
    return torch.stack(parts, 1).flatten(0, 1)


@pytest.mark.parametrize(
    "draw",
    [
        lambda x, g: uniform(x.shape, g),
        lambda x, g: normal((len(x), 4), g),
        lambda x, g: integers(1000, len(x), g),
        lambda x, g: augment(x, Augmentation(flip=True), g)[0],
        lambda x, g: mask_windows(x, g, share=0.3, count=2, fraction=0.5),
        lambda x, g: random_directions(x.flatten(1)[:, :5], g),
        attack,
    ],
    ids=["uniform", "normal", "integers", "augment", "mask_windows", "directions", "attack"],
)
def test_processes_draw_what_one_process_draws(draw) -> None:
    """Twice in a row: a draw leaves all generators in the same state."""
    alone, processes = seeded(0), shares()
    for _ in range(2):
        parts = [draw(X[g.rank :: g.world], g) for g in processes]
        torch.testing.assert_close(joined(parts), draw(X, alone), rtol=0, atol=1e-6)
    assert len({bytes(g.get_state().tolist()) for g in [alone, *processes]}) == 1


def test_a_generator_of_one_process_draws_as_torch_does() -> None:
    assert torch.equal(uniform((4, 2), seeded(1)), torch.rand(4, 2, generator=seeded(1)))
    assert torch.equal(normal((4, 2), seeded(1)), torch.randn(4, 2, generator=seeded(1)))
    assert torch.equal(normal((4,), shared(seeded(1), rank=0, world=1)), torch.randn(4, generator=seeded(1)))
