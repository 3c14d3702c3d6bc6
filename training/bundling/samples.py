"""Samples of a bundle: the first test images by a fixed rule, clean, attacked and patched, with their answers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from gateway.core.pipeline import Pipeline
from training.attacks.patch import patch_attack, patch_side
from training.attacks.pgd import pgd
from training.data.dataset import Split
from training.defence.constants import batch_of
from training.imaging.pixels import to_tensor
from training.served.scoring import png, to_uint8
from training.util.module_modes import seeded
from training.util.signatures import StepProgress

SAMPLED = ("attacked", "patched")
TITLES = {
    "pgd_4": "PGD 4/255",
    "attacked": "PGD 8/255",
    "patched": "noisy patch of 5 %",
    "sticker": "sticker of 5 % (a few colours)",
}


@dataclass(frozen=True)
class Effort:
    """The first `tried` test images are attacked with `steps` steps; patches try `places` first, with `probe_steps`."""

    tried: int = 120
    steps: int = 50
    places: int = 6
    probe_steps: int = 8


@dataclass(frozen=True)
class Attacked:
    """M images uint8 (M, H, W, C) of one kind, and by image whether the answer was right clean, and wrong now."""

    images: np.ndarray
    right: np.ndarray
    fooled: np.ndarray


def attacked_images(
    network: nn.Module, split: Split, kinds: Sequence[str], effort: Effort, *, seed: int, progress: StepProgress
) -> dict[str, Attacked]:
    """The first images of `split` under attacks of the `kinds` (`TITLES`) on `network`, as files carry them."""
    pool = split.take(np.arange(min(effort.tried, len(split))))
    x, y = to_tensor(pool.x), torch.from_numpy(pool.y)
    batch = batch_of(x.shape[2], x.shape[3])
    right = torch.cat([_labels(network, some) for some in x.split(batch)]) == y
    made = {}
    for kind in kinds:
        attack, done = _attack(kind, x.shape[2], effort, seed), []
        for some, labels in zip(x.split(batch), y.split(batch), strict=True):
            images = to_uint8(attack(network, some, labels).numpy())
            done.append((images, _labels(network, to_tensor(images)) != labels))
            progress(f"attacking samples: {TITLES[kind]}", min(len(done) * batch, len(x)), len(x))
        fooled = right & torch.cat([wrong for _, wrong in done])
        made[kind] = Attacked(np.concatenate([images for images, _ in done]), right.numpy(), fooled.numpy())
    return made


def write_samples(
    folder: Path, pipeline: Pipeline, test: Split, made: dict[str, Attacked], *, classes: Sequence[str], count: int
) -> None:
    """Write `*.png` and `answers.json` into `folder`, `count` of each kind.

    The rule: clean are the first test images of distinct classes; attacked (PGD, 8/255) and patched (about 5 % of the
    image) are the first of distinct classes, in test order, that the answering network gets right clean and wrong
    attacked.
    """
    folder.mkdir(exist_ok=True)
    tried = made[SAMPLED[0]]
    clean = Attacked(test.x[: len(tried.images)], tried.right, tried.right)
    answers: dict[str, Any] = {}
    for kind, attacked in {"clean": clean, **{kind: made[kind] for kind in SAMPLED}}.items():
        chosen = first_of_classes(test.y[: len(attacked.fooled)], attacked.fooled, count)
        for number, index in enumerate(chosen):
            data_png = png(attacked.images[index])
            name = f"{kind}_{number}.png"
            (folder / name).write_bytes(data_png)
            decision = pipeline.decide(data_png)
            answers[name] = {
                "test_index": int(index),
                "truth": classes[test.y[index]],
                "label": decision.served.prediction.label,
                "before": decision.raw.prediction.label,
                "after": decision.neutralized.result.prediction.label if decision.neutralized else None,
                "flagged": decision.flagged,
                "p_value": round(decision.raw.verdict.p_value, 6),
            }
    (folder / "answers.json").write_text(json.dumps(answers, indent=1) + "\n", "utf-8")


def first_of_classes(labels: np.ndarray, eligible: np.ndarray, count: int) -> list[int]:
    """Indices of the first eligible image of each class, in order, at most `count`."""
    seen: set[int] = set()
    chosen: list[int] = []
    for index in np.flatnonzero(eligible):
        if int(labels[index]) not in seen and len(chosen) < count:
            seen.add(int(labels[index]))
            chosen.append(int(index))
    return chosen


def _attack(kind: str, side: int, effort: Effort, seed: int) -> partial[Tensor]:
    """The attack of that kind as a function of network, pixels and labels."""
    if kind in ("pgd_4", "attacked"):
        eps = 4 if kind == "pgd_4" else 8
        return partial(pgd, eps=eps / 255, steps=effort.steps, generator=seeded(seed, eps))
    patch = patch_side(side)
    found = partial(
        patch_attack,
        side=patch,
        kind="noisy" if kind == "patched" else "low_frequency",
        places=effort.places,
        probe_steps=effort.probe_steps,
        steps=effort.steps,
        generator=seeded(seed, patch) if kind == "patched" else seeded(seed, patch, 1),
    )
    return partial(_first, found)


def _first(attack: partial[tuple[Tensor, Tensor]], network: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return attack(network, x, y)[0]


@torch.no_grad()
def _labels(network: nn.Module, x: Tensor) -> Tensor:
    return network(x).argmax(1)
