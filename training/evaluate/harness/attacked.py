"""Test images under attacks on the answering network alone, whose makers do not know the defence."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from training.attacks.listed import ATTACKS
from training.attacks.unaware import Attack, Scene
from training.data.dataset import Split
from training.evaluate.harness.bench import Bench, as_images
from training.evaluate.harness.store import Arrays
from training.evaluate.harness.surrogates import surrogates
from training.served.answers import Served
from training.util.module_modes import frozen


@dataclass(frozen=True)
class Attacked:
    """What an attack made: the images that it began with, the attacked uint8 images, and what else it reports."""

    clean: Split
    images: np.ndarray
    rows: Arrays

    def __len__(self) -> int:
        return len(self.images)


def attacked(bench: Bench, name: str) -> Attacked:
    """The images of the attack `name` of `training.attacks.listed`, made now or before."""
    attack = ATTACKS[name]
    clean = bench.test.take(bench.right_first(getattr(bench.settings, attack.count)))

    def make(start: int, stop: int, generator: torch.Generator) -> Arrays:
        part = clean.take(np.arange(start, stop))
        scene = Scene(bench.defence.network, bench.settings, partial(surrogates, bench), generator)
        with frozen(bench.defence):
            made = attack.make(scene, bench.pixels(part.x), bench.targets(part.y))
        return {"images": as_images(made.adversarial), **made.rows}

    rows = bench.rows(attack.title, f"attack-{name}", _depends(bench, attack), len(clean), attack.chunk, make)
    return Attacked(clean, rows["images"], rows)


def answered(bench: Bench, name: str, *, cascade: bool = False) -> tuple[Attacked, Served]:
    """An attack's images and what the gateway answers to them."""
    made, attack = attacked(bench, name), ATTACKS[name]
    depends = {"seed": bench.settings.seed} | _depends(bench, attack)
    return made, bench.answers(f"answers: {attack.title}", name, made.images, depends, cascade=cascade)


def flags(bench: Bench, answers: Served, alpha: float, *, cascade: bool = False) -> np.ndarray:
    """Which answers (N,) the gateway flags at `alpha`."""
    return answers.p_value <= bench.pipeline.judge.cutoff(alpha, cascade=cascade)


def _depends(bench: Bench, attack: Attack) -> dict[str, object]:
    return {setting: getattr(bench.settings, setting) for setting in attack.depends}
