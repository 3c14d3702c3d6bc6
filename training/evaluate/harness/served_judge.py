"""Attacks that stop where the gateway itself says that they have won."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from training.evaluate.harness.bench import Bench, as_images
from training.evaluate.harness.store import Arrays
from training.served.answers import Served, serve


def judged_as_served(
    bench: Bench, tell: Callable[[Bench, Served, np.ndarray], Arrays], until: str
) -> Callable[[Tensor, Tensor], Tensor]:
    """What the gateway itself answers to the images, as columns; the last one says when an image needs no more work."""

    def beaten(adversarial: Tensor, label: Tensor) -> Tensor:
        told = tell(bench, serve(bench.pipeline, as_images(adversarial)), label.cpu().numpy())
        return torch.from_numpy(np.stack([*told.values(), told[until]], axis=1))

    return beaten
