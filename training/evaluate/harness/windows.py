"""The control of what neutralisation repairs: random windows instead of the defence's own."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import torch

from gateway.core.decode import to_pixels
from training.defence.localisers import localiser_named
from training.evaluate.harness.bench import Bench
from training.served.scoring import batches, run_images
from training.util.statistics import interval

RANDOM_WINDOWS = 5


def random_windows(
    bench: Bench, name: str, images: np.ndarray, labels: np.ndarray, recovered: np.ndarray, group: np.ndarray
) -> dict[str, Any]:
    """The control: the answer after a random window as large as the defence's is inpainted, mean of five draws.

    Every image is neutralised; the defence's own answer (`recovered`) has to be better by an interval without 0.
    """
    if len(images) == 0:
        return {"random_windows": None, "beyond": None, "beyond_interval": None}
    engine, spec = bench.pipeline.engine, bench.bundle.manifest.input
    height, width = images.shape[1:3]
    sides = _window_sides(bench, images)
    rng = np.random.default_rng([bench.settings.seed, height])
    hits = np.zeros((RANDOM_WINDOWS, len(images)), bool)
    for draw in range(RANDOM_WINDOWS):
        masks = np.zeros(images.shape[:3], np.float32)
        for mask, side in zip(masks, sides, strict=True):
            top, left = rng.integers(0, height - side + 1), rng.integers(0, width - side + 1)
            mask[top : top + side, left : left + side] = 1
        answers = run_images(
            engine,
            images,
            spec,
            masks=masks,
            part="verdict",
            batch=engine.buckets[-1],
            progress=partial(bench.progress, f"{name}: random windows"),
        )
        hits[draw] = answers.logits.argmax(1) == labels
    mean = hits.mean(0)
    return {
        "random_windows": float(mean.mean()),
        "beyond": float(recovered.mean() - mean.mean()),
        "beyond_interval": interval(recovered, group, minus=mean),
    }


def _window_sides(bench: Bench, images: np.ndarray) -> np.ndarray:
    """Sides (N,) in pixels of squares as large as the defence's own regions on uint8 images (N, H, W, C)."""
    parts = batches(images, bench.pipeline.engine.buckets[-1])
    localiser = localiser_named(bench.bundle.manifest.localiser)
    areas = [localiser.locate(torch.from_numpy(to_pixels(part)))[0].sum((1, 2)) for part in parts]
    return np.asarray(torch.cat(areas).sqrt().round().long().numpy())
