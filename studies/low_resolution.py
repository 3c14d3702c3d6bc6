"""A companion that sees averaged images, and what it is worth: `python -m studies.low_resolution`.

Traffic signs are enlarged to twice their side; the answering network sees them whole, its companion averaged down
again. Both are trained here on a small budget, resumed where a run was stopped. The answering network is then wrapped
twice, with the companion and without, and an attacker who knows everything (`training.evaluate.harness.suite`) attacks
both.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from PIL import Image

from training.data.augment import Augmentation
from training.data.dataset import SPLITS, Dataset
from training.models import ModelSpec
from training.recipes.training import Adversary, DataSpec, MaskAugmentation, Recipe, Stage

SIDE, LOW = 64, 32
DATA = DataSpec(source="npz:gtsrb32")
# Strong changes are what a small network cannot learn on top of the adversary.
MILD = Augmentation(rotate=5, translate=0.06, scale=0.08, shear=0.04, brightness=0.15, contrast=0.15)


def enlarged(data: Dataset, side: int) -> Dataset:
    """`data` with all images bicubically resized to `side` pixels."""

    def resized(images: np.ndarray) -> np.ndarray:
        size = (side, side)
        return np.stack([np.asarray(Image.fromarray(each).resize(size, Image.Resampling.BICUBIC)) for each in images])

    return replace(
        data, **{name: replace(split, x=resized(split.x)) for name in SPLITS for split in [getattr(data, name)]}
    )


def recipes(*, epochs: int, side: int = SIDE, low: int = LOW, seed: int = 0) -> dict[str, Recipe]:
    """Recipes of both networks: the answering one for fewer epochs, the companion adversarially, mildly augmented."""
    short, late = max(1, 2 * epochs // 3), max(1, epochs // 4)
    masks = Stage(name="mask", epochs=late, lr=0.03, mask_augmentation=MaskAugmentation())
    adversary = Adversary(eps=8, steps=3, clean_weight=1.0)
    stages = {
        "standard": [Stage(name="standard", epochs=short, lr=0.1), masks],
        "companion": [
            Stage(name="adversarial", epochs=epochs, lr=0.08, adversary=adversary),
            Stage(name="settle", epochs=late, lr=0.02, adversary=adversary),
        ],
    }
    models = {"standard": ModelSpec(stem_stride=side // 32), "companion": ModelSpec(side=low)}
    changes = {"standard": Augmentation(), "companion": MILD}
    return {
        role: Recipe(
            name=f"low-resolution-{role}",
            seed=seed,
            data=DATA,
            model=models[role],
            stages=stages[role],
            augmentation=changes[role],
            ema=0.99,
        )
        for role in stages
    }
