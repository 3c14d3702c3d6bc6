"""Which test images show the same physical object, where a data set does not state it.

Test images that are frames of a few hundred tracks carry less evidence than as many single photos: what one frame does
its neighbours do, and a bootstrap by image gives intervals that are too narrow. GTSRB's test part is such: whole tracks
of 30 frames in random order, whose names were not published (Stallkamp et al. 2012, "Man vs. computer").
"""

from __future__ import annotations

import numpy as np
from scipy.cluster.hierarchy import fcluster, linkage

_SIDE = 16


def inferred_tracks(x: np.ndarray, y: np.ndarray, *, frames: int) -> np.ndarray:
    """Track ids (N,) of images uint8 (N, H, W, C) with labels (N,): within each class, likely tracks of `frames`.

    Ward's clustering of the colours of 16 x 16 fields, without brightness and contrast, into as many clusters as the
    class has tracks. How near that comes where tracks are known: `python -m studies.tracks`, docs/methods.md.
    """
    group, known = np.zeros(len(y), np.int64), 0
    for label in np.unique(y):
        members = np.flatnonzero(y == label)
        count = max(1, round(len(members) / frames))
        if count > 1:
            found = fcluster(linkage(_appearance(x[members]), "ward"), count, "maxclust") - 1
        else:
            found = np.zeros(len(members), np.int64)
        group[members] = known + found
        known += int(found.max()) + 1
    return group


def _appearance(x: np.ndarray) -> np.ndarray:
    """Colours of fields (N, D) of images (N, H, W, C), each image's of mean 0 and length 1."""
    height, width = (extent // _SIDE * _SIDE or extent for extent in x.shape[1:3])
    rows, columns = min(_SIDE, height), min(_SIDE, width)
    cut = x[:, :height, :width].astype(np.float32)
    cut = cut.reshape(len(x), rows, height // rows, columns, width // columns, x.shape[3])
    found = cut.mean((2, 4)).reshape(len(x), -1)
    found -= found.mean(1, keepdims=True)
    return found / np.maximum(np.linalg.norm(found, axis=1, keepdims=True), 1e-6)
