"""Test images under attacks on the answering network alone, whose makers do not know the defence."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from training.attacks.fgsm import fgsm, momentum_fgsm
from training.attacks.margin import margin
from training.attacks.minimal_norm import minimal_norm
from training.attacks.patch import Kind, patch_attack
from training.attacks.pgd import pgd
from training.attacks.square import square
from training.data.dataset import Split
from training.evaluate.harness.bench import Bench, as_images
from training.evaluate.harness.store import Arrays
from training.evaluate.measurements.surrogates import surrogates
from training.recipes.evaluation import DETECTED, Evaluation
from training.served.answers import Served
from training.util.module_modes import frozen

CHUNK = 128
# (bench, x (N, C, H, W), y (N,), generator) -> images uint8 (N, H, W, C) and what else is told by image.
Make = Callable[[Bench, Tensor, Tensor, torch.Generator], Arrays]


@dataclass(frozen=True)
class Attack:
    """An unaware attack: its level (design: 1 black box, 2 white box, patches) and how many images it is made on.

    `depends` are the settings, beside the seed, that its images depend on; `seconds` an image take on one slow core.
    """

    make: Make
    level: str = "2"
    count: str = "unaware"
    depends: tuple[str, ...] = ()
    seconds: float = 0.2
    chunk: int = CHUNK


@dataclass(frozen=True)
class Attacked:
    """What an attack made: the images that it began with, the attacked uint8 images, and what else it tells."""

    clean: Split
    images: np.ndarray
    rows: Arrays

    def __len__(self) -> int:
        return len(self.images)


def patch_side(bench: Bench) -> int:
    """About 5 % of the image: 7 pixels at 32."""
    return round(0.22 * bench.bundle.manifest.input.height)


def _pgd(bench: Bench, x: Tensor, y: Tensor, generator: torch.Generator, *, eps: float) -> Arrays:
    network, steps = bench.defence.network, bench.settings.steps
    return {"images": as_images(pgd(network, x, y, eps=eps / 255, steps=steps, generator=generator))}


def _l2(bench: Bench, x: Tensor, y: Tensor, generator: torch.Generator, *, eps: float) -> Arrays:
    network, steps = bench.defence.network, bench.settings.steps
    return {"images": as_images(pgd(network, x, y, eps=eps, steps=steps, norm="l2", generator=generator))}


def _fgsm(bench: Bench, x: Tensor, y: Tensor, _generator: torch.Generator, *, eps: float) -> Arrays:
    return {"images": as_images(fgsm(bench.defence.network, x, y, eps=eps / 255))}


def _minimal(bench: Bench, x: Tensor, y: Tensor, _generator: torch.Generator) -> Arrays:
    return {"images": as_images(minimal_norm(bench.defence.network, x, y, confidence=CONFIDENCE))}


def _transfer(bench: Bench, x: Tensor, y: Tensor, _generator: torch.Generator, *, eps: float) -> Arrays:
    return {"images": as_images(momentum_fgsm(surrogates(bench), x, y, eps=eps / 255))}


def _square(bench: Bench, x: Tensor, y: Tensor, generator: torch.Generator, *, eps: float) -> Arrays:
    network = bench.defence.network

    @torch.no_grad()
    def score(images: Tensor, labels: Tensor) -> Tensor:
        return margin(network(images), labels)

    done = square(score, x, y, eps=eps / 255, queries=bench.settings.square_queries, generator=generator)
    return {"images": as_images(done.adversarial), "queries": done.queries.cpu().numpy()}


def _patch(bench: Bench, x: Tensor, y: Tensor, generator: torch.Generator, *, kind: Kind) -> Arrays:
    patched, mask = patch_attack(bench.defence.network, x, y, side=patch_side(bench), kind=kind, generator=generator)
    return {"images": as_images(patched), "mask": mask.cpu().numpy() > 0.5}


CONFIDENCE = 1.0
"""Margin in logits that a minimal-norm attack reaches: one that stops at the boundary flatters every detector."""

ATTACKS: dict[str, Attack] = {
    "transfer_8": Attack(partial(_transfer, eps=8), "1", depends=("surrogate_epochs",)),
    "transfer_16": Attack(partial(_transfer, eps=16), "1", depends=("surrogate_epochs",)),
    "square_8": Attack(
        partial(_square, eps=8), "1", count="square", depends=("square_queries",), seconds=1.0, chunk=64
    ),
    "fgsm_8": Attack(partial(_fgsm, eps=8)),
    "pgd_4": Attack(partial(_pgd, eps=4), depends=("steps",)),
    "pgd_8": Attack(partial(_pgd, eps=8), depends=("steps",)),
    "l2_1": Attack(partial(_l2, eps=1.0), depends=("steps",)),
    "minimal": Attack(_minimal, count="minimal", seconds=0.5),
    "patch": Attack(partial(_patch, kind="noisy"), "patches", count="patched", seconds=0.45),
    "patch_low": Attack(partial(_patch, kind="low_frequency"), "patches", count="patched", seconds=0.45),
}


def count_of(name: str, settings: Evaluation) -> int:
    """How many images the settings ask of an attack."""
    return int(getattr(settings, ATTACKS[name].count))


def attacked(bench: Bench, name: str) -> Attacked:
    """The images of the attack `name`, made now or before."""
    attack = ATTACKS[name]
    index = bench.right_first(count_of(name, bench.settings))
    clean = bench.test.take(index)

    def make(start: int, stop: int, generator: torch.Generator) -> Arrays:
        part = clean.take(np.arange(start, stop))
        with frozen(bench.defence):
            return attack.make(bench, bench.pixels(part.x), bench.targets(part.y), generator)

    rows = bench.rows(title(name), f"attack-{name}", _depends(bench, name), len(clean), attack.chunk, make)
    return Attacked(clean, rows["images"], rows)


def answered(bench: Bench, name: str, *, cascade: bool = False) -> tuple[Attacked, Served]:
    """An attack's images and what the gateway answers to them."""
    made = attacked(bench, name)
    depends = {"seed": bench.settings.seed} | _depends(bench, name)
    return made, bench.answers(f"answers: {title(name)}", name, made.images, depends, cascade=cascade)


def title(name: str) -> str:
    """An attack's name as cards print it."""
    return DETECTED[name]


def _depends(bench: Bench, name: str) -> dict[str, object]:
    return {setting: getattr(bench.settings, setting) for setting in ATTACKS[name].depends}
