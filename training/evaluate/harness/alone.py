"""One network alone under PGD: what the units of the companion, the control and the security curve share."""

from __future__ import annotations

import numpy as np
import torch

from training.attacks.coarse import searched
from training.attacks.early import pgd_until_fooled
from training.evaluate.harness.bench import Bench, as_images
from training.evaluate.harness.section import Interval, Section
from training.evaluate.harness.store import Arrays
from training.util.module_modes import frozen
from training.util.statistics import interval

CHUNK = 256
ROLES = {"answering": "answering network", "companion": "companion"}


class Standing(Section):
    """Accuracy that PGD-`steps` with `restarts` starts leaves, Linf of `eps` / 255, on `n` test images."""

    n: int
    eps: float
    steps: int
    restarts: int
    accuracy: float
    accuracy_interval: Interval


def pgd_rows(bench: Bench, role: str, *, eps: float, count: int | None, restarts: int = 1) -> Arrays:
    """PGD Linf of `eps` / 255 on a network alone: `standing` (n,) after it, and the attacked uint8 `images`.

    It searches in the precision that the machine is made for (`training.attacks.coarse`) and is judged in float32; any
    iterate that fools counts. Only images that the network answers rightly are attacked.
    """
    test, predict = bench.first(count), searched(bench.networks[role])
    right = bench.labels[role] == bench.test.y

    def make(start: int, stop: int, generator: torch.Generator) -> Arrays:
        part = test.take(np.arange(start, stop))
        images, standing = part.x.copy(), right[start:stop].copy()
        alive = np.flatnonzero(standing)
        if len(alive):
            with frozen(bench.defence):
                adversarial, fooled = pgd_until_fooled(
                    predict,
                    bench.pixels(part.x[alive]),
                    bench.targets(part.y[alive]),
                    eps=eps / 255,
                    steps=bench.settings.steps,
                    restarts=restarts,
                    generator=generator,
                )
            images[alive], standing[alive] = as_images(adversarial), ~fooled.cpu().numpy()
        return {"images": images, "standing": standing}

    name = f"{role}, PGD-{bench.settings.steps} at {eps:g}/255"
    depends = {"steps": bench.settings.steps, "restarts": restarts}
    key = f"pgd-{role}-{eps:g}" + (f"x{restarts}" if restarts > 1 else "")
    return bench.rows(name, key, depends, len(test), CHUNK, make)


def standing_section(bench: Bench, standing: np.ndarray, *, eps: float, restarts: int) -> Standing:
    """The section of the outcomes `standing` (n,) of `pgd_rows`."""
    return Standing(
        n=len(standing),
        eps=eps,
        steps=bench.settings.steps,
        restarts=restarts,
        accuracy=float(standing.mean()),
        accuracy_interval=interval(standing, bench.test.group[: len(standing)]),
    )
