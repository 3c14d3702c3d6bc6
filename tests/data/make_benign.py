"""Makes tests/data/gtsrb-benign.webp and .json (needs the data set; `python tests/data/make_benign.py`, minutes).

2,000 images of GTSRB's official test split, drawn at random (seed 0) from those that are not in gtsrb.npz. Nothing of
a bundle was trained, normalised or calibrated on them. The test split publishes no tracks: images are drawn singly.
Lossless: a mosaic of 50 columns and 40 rows, row by row; the JSON file has labels and places in the test split.
Source of the images: GTSRB (Stallkamp et al. 2012), resized to 32x32.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image

from training.data.dataset import data_dir

HERE = Path(__file__).resolve().parent
COLUMNS, ROWS = 50, 40


def main() -> None:
    with np.load(data_dir() / "gtsrb32.npz", allow_pickle=False) as data, np.load(HERE / "gtsrb.npz") as used:
        x, y = data["x_test"], data["y_test"]
        known = {image.tobytes() for image in used["x"]}
    fresh = np.array([i for i, image in enumerate(x) if image.tobytes() not in known])
    chosen = np.sort(np.random.default_rng(0).permutation(fresh)[: COLUMNS * ROWS])
    side = x.shape[1]
    mosaic = x[chosen].reshape(ROWS, COLUMNS, side, side, 3).swapaxes(1, 2).reshape(ROWS * side, COLUMNS * side, 3)
    Image.fromarray(mosaic).save(HERE / "gtsrb-benign.webp", lossless=True, quality=100, method=6)
    labels = {"index": chosen.tolist(), "label": y[chosen].tolist()}
    (HERE / "gtsrb-benign.json").write_text(json.dumps(labels) + "\n", "utf-8")


if __name__ == "__main__":
    main()
