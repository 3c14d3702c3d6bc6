from __future__ import annotations

import pytest
import torch
from torch import Tensor

from training.attacks.early import pgd_until_fooled
from training.attacks.margin import margin
from training.attacks.pgd import pgd
from training.models.resnet import SmallResNet
from training.util.module_modes import seeded


class Counting:
    """A network that notes how many images each forward had."""

    def __init__(self, network: SmallResNet) -> None:
        self.network, self.sizes = network, list[int]()

    def __call__(self, x: Tensor) -> Tensor:
        self.sizes.append(len(x))
        return self.network(x)


@pytest.mark.parametrize(("steps", "restarts", "batch"), [(4, 1, 256), (30, 1, 256), (30, 2, 50), (4, 3, 7)])
def test_fooled_says_what_the_images_do(
    trained: SmallResNet, test_images: tuple[Tensor, Tensor], steps: int, restarts: int, batch: int
) -> None:
    x, y = (t[:60] for t in test_images)
    adv, fooled = pgd_until_fooled(
        trained, x, y, eps=3 / 255, steps=steps, restarts=restarts, batch=batch, generator=seeded(0)
    )
    assert 0 < fooled.sum() < 60  # neither is empty, or the test says nothing
    assert torch.equal(fooled, margin(trained(adv), y) < 0)
    assert (adv - x).abs().max() <= 3 / 255 + 1e-6
    assert adv.min() >= 0
    assert adv.max() <= 1


def test_fooled_images_are_not_attacked_again(trained: SmallResNet, test_images: tuple[Tensor, Tensor]) -> None:
    x, y = (t[:60] for t in test_images)
    network = Counting(trained)
    _, fooled = pgd_until_fooled(network, x, y, eps=3 / 255, steps=25, generator=seeded(0))
    left = int((~fooled).sum())
    assert 0 < left < 60
    # Each step is one forward of who still stands, and one more of those who seem fooled; the last judges the rest.
    assert network.sizes[0] == 60
    assert network.sizes[-1] == left
    assert sum(network.sizes) < 60 * 26


def test_nobody_is_let_off_early(trained: SmallResNet, test_images: tuple[Tensor, Tensor]) -> None:
    """Stopping at the first success finds as many as plain PGD, which keeps the worst of all iterates."""
    x, y = (t[:40] for t in test_images)
    right = trained(x).argmax(1) == y
    x, y = x[right], y[right]
    _, fooled = pgd_until_fooled(trained, x, y, eps=3 / 255, steps=20, generator=seeded(0))
    plain = margin(trained(pgd(trained, x, y, eps=3 / 255, steps=20, generator=seeded(0))), y) < 0
    assert torch.equal(fooled, plain)


def test_a_coarse_search_is_judged_exactly(trained: SmallResNet, test_images: tuple[Tensor, Tensor]) -> None:
    """With logits rounded while gradients are wanted, `fooled` still speaks of the exact network."""
    x, y = (t[:40] for t in test_images)

    def coarse(z: Tensor) -> Tensor:
        logits = trained(z)
        return logits + 0.3 * torch.sin(40 * logits) if torch.is_grad_enabled() else logits

    adv, fooled = pgd_until_fooled(coarse, x, y, eps=3 / 255, steps=20, generator=seeded(0))
    assert torch.equal(fooled, margin(trained(adv), y) < 0)


def test_restarts_add_to_the_fooled(trained: SmallResNet, test_images: tuple[Tensor, Tensor]) -> None:
    x, y = (t[:60] for t in test_images)
    counts = [
        int(pgd_until_fooled(trained, x, y, eps=3 / 255, steps=2, restarts=r, generator=seeded(0))[1].sum())
        for r in (1, 6)
    ]
    assert counts[1] >= counts[0] > 0


def test_progress_ends_at_the_total(trained: SmallResNet, test_images: tuple[Tensor, Tensor]) -> None:
    x, y = (t[:10] for t in test_images)
    seen = []
    pgd_until_fooled(trained, x, y, eps=0, steps=1, batch=4, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(4, 10), (8, 10), (10, 10)]
