"""Three images of one: as it is, attacked so that the network errs, and under Gaussian noise of equal statistics."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from training.attacks.coarse import searched
from training.attacks.pgd import Norm, pgd
from training.errors import TrainingError
from training.util.module_modes import frozen, seeded
from training.util.signatures import StepProgress, silent

BATCH = 50
ATTACKS: dict[str, tuple[Norm, float]] = {
    "PGD 4/255": ("linf", 4 / 255),
    "PGD 8/255": ("linf", 8 / 255),
    "L2 1.0": ("l2", 1.0),
}
KINDS = ("clean", "adversarial", "gaussian")


@dataclass(frozen=True)
class Triples:
    """Images (N, C, H, W) that an attack makes wrong: as they are, attacked, and under noise like the attack.

    `right` and `wrong` (N,) are the labels before and after; `attacked` and `correct` count the images that these are
    left of: all, and those that the network gets right.
    """

    images: dict[str, Tensor]
    right: Tensor
    wrong: Tensor
    group: np.ndarray
    attacked: int
    correct: int

    def __len__(self) -> int:
        return len(self.right)


def triples(
    network: nn.Module,
    x: Tensor,
    y: Tensor,
    group: np.ndarray,
    *,
    eps: float,
    steps: int,
    seed: int,
    progress: StepProgress = silent,
) -> Triples:
    """PGD (Linf, `eps` of 1) on the correctly answered images of x (N, C, H, W), and noise of equal mean and L2 norm.

    Raises `TrainingError` where fewer than two images are fooled.
    """
    generator = seeded(seed, 5)
    kept: list[tuple[Tensor, ...]] = []
    right = predictions(network, x) == y
    index = torch.arange(len(x)).to(right.device)[right]
    predict = searched(network)
    for part in index.split(BATCH):
        progress("attacking", len(kept) * BATCH, len(index))
        adversarial = pgd(predict, x[part], y[part], eps=eps, steps=steps, generator=generator)
        noisy = matched_noise(x[part], adversarial, generator)
        label = predictions(network, adversarial)
        fooled = label != y[part]
        kept.append((adversarial[fooled], noisy[fooled], label[fooled], part[fooled]))
    fooled_images = sum(len(part[-1]) for part in kept)
    if fooled_images < 2:
        raise TrainingError(
            f"the attack fools the network on {fooled_images} of the {len(index)} images that it gets right; "
            "use a larger --eps or more --images"
        )
    adversarial, noisy, wrong, chosen = (torch.cat(column) for column in zip(*kept, strict=True))
    images = dict(zip(KINDS, (x[chosen], adversarial, noisy), strict=True))
    return Triples(images, y[chosen], wrong, group[chosen.cpu().numpy()], len(x), len(index))


@torch.no_grad()
def predictions(network: nn.Module, x: Tensor) -> Tensor:
    """Labels (N,) that the network returns, in evaluation mode."""
    with frozen(network):
        return torch.cat([network(part).argmax(1) for part in x.split(4 * BATCH)])


def white_box(network: nn.Module, x: Tensor, y: Tensor, attack: str, *, steps: int, seed: int) -> Tensor:
    """Images x (N, C, H, W) with labels y (N,) after one of `ATTACKS`, PGD with `steps` steps, on the network alone."""
    norm, eps = ATTACKS[attack]
    generator = seeded(seed, 6, list(ATTACKS).index(attack))
    predict = searched(network)
    parts = [
        pgd(predict, *some, eps=eps, steps=steps, norm=norm, generator=generator)
        for some in zip(x.split(BATCH), y.split(BATCH), strict=True)
    ]
    return torch.cat(parts)


def matched_noise(x: Tensor, other: Tensor, generator: torch.Generator, *, rounds: int = 20) -> Tensor:
    """x under Gaussian noise with the mean and the L2 norm of each image's own perturbation `other` - x.

    Clipping to [0, 1] shortens the noise; it is lengthened until the norm is the perturbation's again.
    """
    delta = other - x
    mean, size = delta.mean((1, 2, 3), keepdim=True), delta.flatten(1).norm(dim=1)
    noise = torch.randn(x.shape, generator=generator).to(x)
    noise = noise - noise.mean((1, 2, 3), keepdim=True)
    noise = noise / noise.std((1, 2, 3), keepdim=True, correction=0)
    spread = delta.std((1, 2, 3), keepdim=True, correction=0)
    for _ in range(rounds):
        noisy = (x + mean + spread * noise).clamp(0, 1)
        spread = spread * (size / (noisy - x).flatten(1).norm(dim=1).clamp_min(1e-12))[:, None, None, None]
    return noisy
