"""Samples of a bundle: the first test images by a fixed rule, clean, attacked and patched, with their answers."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gateway.core.loading import Bundle
from training.attacks.patch import patch_attack
from training.attacks.pgd import pgd
from training.bundling.networks import load_defence
from training.data.dataset import Dataset
from training.defence.constants import batch_of
from training.imaging.pixels import to_tensor
from training.served.answers import open_pipeline
from training.served.scoring import png, to_uint8
from training.util.module_modes import seeded

POOL = 120


def write_samples(bundle: Bundle, data: Dataset, *, seed: int, count: int, pool: int = POOL, steps: int = 50) -> None:
    """Write `samples/*.png` and `samples/answers.json` into the bundle's folder.

    The rule: clean are the first test images of distinct classes; attacked (PGD, 8/255) and patched (about 5 % of the
    image) are the first of distinct classes, in test order, that the answering network gets right clean and wrong
    attacked. The first `pool` test images are tried, with `steps` steps.
    """
    defence, pipeline = load_defence(bundle), open_pipeline(bundle)
    folder = bundle.path / "samples"
    folder.mkdir(exist_ok=True)
    test = data.test.take(np.arange(min(pool, len(data.test))))
    x, y = to_tensor(test.x), torch.from_numpy(test.y)
    side = round(0.22 * x.shape[2])
    batch, generators = batch_of(x.shape[2], x.shape[3]), (seeded(seed, 8), seeded(seed, side))
    pairs = list(zip(x.split(batch), y.split(batch), strict=True))
    attacked = torch.cat(
        [pgd(defence.network, a, b, eps=8 / 255, steps=steps, generator=generators[0]) for a, b in pairs]
    )
    patched = torch.cat(
        [patch_attack(defence.network, a, b, side=side, steps=steps, generator=generators[1])[0] for a, b in pairs]
    )
    answers: dict[str, Any] = {}
    for kind, pixels in (("clean", x), ("attacked", attacked), ("patched", patched)):
        images = to_uint8(pixels.numpy())
        right = _labels(defence.network, x) == y
        fooled = _labels(defence.network, to_tensor(images)) != y
        chosen = first_of_classes(test.y, (right if kind == "clean" else right & fooled).numpy(), count)
        for number, index in enumerate(chosen):
            data_png = png(images[index])
            name = f"{kind}_{number}.png"
            (folder / name).write_bytes(data_png)
            decision = pipeline.decide(data_png)
            answers[name] = {
                "test_index": int(index),
                "truth": data.classes[test.y[index]],
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


@torch.no_grad()
def _labels(network: torch.nn.Module, x: Tensor) -> Tensor:
    return network(x).argmax(1)
