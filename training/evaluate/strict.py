"""The strict companion: its margin of the answer after a short attack by ourselves, against those who know of it.

Where an adversarial image lies just over the companion's border, a small step leads back: its label does not stand a
short search against it, while those of benign images do. It is no score of the served graph, as its two input gradients
cost as much again as everything else; it is measured beside the plain companion (`training.evaluate.adaptive`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from training.attacks.joint import Afterwards, Seen, companion_says, confident, says
from training.attacks.margin import margin
from training.attacks.pgd import project
from training.defence.graph import DefenceGraph
from training.evaluate.adaptive import Stage, by_system, carry_out, union_of
from training.evaluate.bench import Bench
from training.evaluate.found import Found
from training.evaluate.settings import RATES
from training.evaluate.statistics import threshold_at
from training.evaluate.store import Arrays
from training.evaluate.systems import ALONE, DOUBT, DOUBTS
from training.modes import frozen

STRICT = "strict"
CHUNK = 1024
RADIUS, STEPS, STRIDE = 4 / 255, 2, 0.75
"""Of our own attack: Linf radius, steps, and their size as a share of the radius."""


def strict_margin(companion: Callable[[Tensor], Tensor], x: Tensor, label: Tensor) -> Tensor:
    """Margin (N,) of `label` (N,) at pixels x (N, C, H, W) after our own attack on it.

    Differentiable in `x`, with the attack's perturbation held constant (the envelope rule).
    """
    start = x.detach()
    moved = start
    with torch.enable_grad():
        for _ in range(STEPS):
            leaf = moved.clone().requires_grad_(True)
            (gradient,) = torch.autograd.grad(margin(companion(leaf), label).sum(), leaf)
            moved = project(moved - STRIDE * RADIUS * gradient.sign(), start, RADIUS, "linf")
    return margin(companion(x + (moved - start)), label)


@dataclass(frozen=True)
class Strict:
    """The answering network, flagged where the companion's strict margin of the answer is low."""

    bench: Bench

    @property
    def companion(self) -> nn.Module:
        """Raises `ValueError` where the bundle has none."""
        if self.bench.defence.companion is None:
            raise ValueError("a strict margin needs a companion")
        return self.bench.defence.companion

    @cached_property
    def thresholds(self) -> list[float]:
        """What is above it is flagged, by measured benign flag rate; of minus the strict margin."""
        test, labels = self.bench.data.test, self.bench.labels["answering"]

        def make(start: int, stop: int) -> Arrays:
            with frozen(self.bench.defence), torch.no_grad():
                found = strict_margin(
                    self.companion, self.bench.pixels(test.x[start:stop]), self.bench.targets(labels[start:stop])
                )
            return {"margin": found.cpu().numpy()}

        rows = self.bench.store.rows(
            "strict-clean", self.bench.networks_key, len(test), CHUNK, make,
            partial(self.bench.progress, "strict margins of clean test images"),
        )  # fmt: skip
        return [threshold_at(-rows["margin"], rate) for rate in RATES]

    @property
    def columns(self) -> list[str]:
        """Names of the columns of `judged`, in order."""
        return [*(f"{STRICT}@{rate:g}" for rate in RATES), ALONE, DOUBTS]

    def judged(self, adversarial: Tensor, label: Tensor) -> np.ndarray:
        """Which images (N,) beat each column, (N, R): answered wrong and not flagged, once rounded to 8 bits."""
        images = (adversarial * 255).round() / 255
        with torch.no_grad():
            answer = self.bench.defence.network(images).argmax(1)
            second = margin(self.companion(images), label)
            strict = strict_margin(self.companion, images, answer)
        passes = [(answer != label) & (-strict <= threshold) for threshold in self.thresholds]
        return torch.stack([*passes, second < 0, second < DOUBT], dim=1).cpu().numpy()

    def stages(self) -> list[Stage]:
        """The companion alone, both networks confident, and the strict margin at the limit of each rate."""
        return [
            Stage(ALONE, companion_says, ALONE, "companion"),
            Stage("confident", confident, f"{STRICT}@{RATES[-1]:g}", "networks", DOUBTS),
            *(
                Stage(
                    f"{STRICT}, {rate:g}", _answered, f"{STRICT}@{rate:g}", "networks", DOUBTS,
                    afterwards=_stands(-self.thresholds[RATES.index(rate)]),
                )
                for rate in reversed(RATES)
            ),
        ]  # fmt: skip


def _answered(logits: Tensor, _companion: Tensor, _scores: Tensor, target: Tensor) -> list[Tensor]:
    return [says(logits, target)]


def _stands(limit: float) -> Afterwards:
    """The companion's strict margin of the target is at least `limit`."""

    def afterwards(defence: DefenceGraph, images: Tensor, _seen: Seen, target: Tensor, _label: Tensor) -> list[Tensor]:
        assert defence.companion is not None
        return [(limit + 0.1 - strict_margin(defence.companion, images, target)).relu()]

    return afterwards


def strict(bench: Bench, *, eps: int) -> Found:
    """Share of test images answered wrong and not flagged by the strict companion, by measured benign flag rate."""
    settings, systems = bench.settings, Strict(bench)
    test = bench.first(settings.strict)
    rows = carry_out(
        bench, systems, systems.stages(), STRICT, eps=eps, count=settings.strict, steps=settings.adaptive_steps
    )
    union = union_of(rows, systems.columns)
    alone = union.pop(ALONE)
    table = by_system({name: won for name, won in union.items() if name.startswith(STRICT)}, test.group)[STRICT]
    section: dict[str, Any] = {"n": len(test), "companion": float(alone.mean()), **table}
    outcomes = {f"{STRICT}_{eps}_{rate:g}": union[f"{STRICT}@{rate:g}"] for rate in RATES}
    return Found({"strict": {f"eps_{eps}": section}}, {}, outcomes)
