"""Attacks that stop where the gateway's own answers show that they have won."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from training.evaluate.harness.bench import Bench, as_images
from training.evaluate.harness.store import Arrays
from training.served.answers import Served, serve


def judged_as_served(
    bench: Bench, measure: Callable[[Bench, Served, np.ndarray], Arrays], until: str
) -> Callable[[Tensor, Tensor], Tensor]:
    """The gateway's answers to the images, as columns; the last one states when an image needs no more work."""

    def beaten(adversarial: Tensor, label: Tensor) -> Tensor:
        found = measure(bench, serve(bench.pipeline, as_images(adversarial)), label.cpu().numpy())
        return torch.from_numpy(np.stack([*found.values(), found[until]], axis=1))

    return beaten
