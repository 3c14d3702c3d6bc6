"""Makes tests/data/NAME.npz from the test split of models/NAME (needs the data set; `python tests/data/make.py NAME`).

The first 140 test images, the first 60 attacked (PGD-20, 8/255, seed 0) and the first 40 patched (7x7, seed 0), uint8,
with labels. Sources of the images: GTSRB (Stallkamp et al. 2012), resized to 32x32; CIFAR-10 (Krizhevsky 2009).
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch

from gateway.core.loading import load_bundle
from training.attacks.patch import patch_attack
from training.attacks.pgd import pgd
from training.bundling.networks import load_defence
from training.bundling.provenance import made_with
from training.imaging.pixels import to_tensor
from training.served.scoring import to_uint8
from training.util.module_modes import seeded

HERE = Path(__file__).resolve().parent


def main(name: str) -> None:
    bundle = load_bundle(HERE.parents[1] / "models" / name)
    data, defence = made_with(bundle)[0], load_defence(bundle)
    clean, attacked, patched = (data.test.take(np.arange(n)) for n in (140, 60, 40))
    strong = pgd(
        defence.network,
        to_tensor(attacked.x),
        torch.from_numpy(attacked.y),
        eps=8 / 255,
        steps=20,
        generator=seeded(0, 8),
    )
    patches, _ = patch_attack(
        defence.network, to_tensor(patched.x), torch.from_numpy(patched.y), side=7, generator=seeded(0, 7)
    )
    images = [clean.x, to_uint8(strong.numpy()), to_uint8(patches.numpy())]
    np.savez_compressed(
        HERE / f"{name}.npz",
        x=np.concatenate(images),
        y=np.concatenate([clean.y, attacked.y, patched.y]),
        kind=np.repeat(np.arange(3), [140, 60, 40]),
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
