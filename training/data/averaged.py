"""Data sets averaged down, so that a network which sees few pixels is trained without the cost of many."""

from __future__ import annotations

from dataclasses import replace

from training.data.dataset import Dataset, Split
from training.data.store import room_for
from training.imaging.pixels import to_tensor
from training.imaging.resize import area_average

CHUNK = 256  # images averaged at once


def averaged(data: Dataset, side: int) -> Dataset:
    """`data` with the training and select images averaged down to `side` pixels and rounded to 8 bits.

    The averaging is that of `training.models.averaged.Averaged`, of images as the answering network gets them; what is
    not trained on stays as it is. The description, which run folders compare, stays that of `data`.
    """
    train, select = (_averaged(split, side) for split in (data.train, data.select))
    return replace(data, train=train, select=select, described=data.describe())


def _averaged(split: Split, side: int) -> Split:
    x = room_for((len(split), side, side, split.x.shape[3]))
    for i in range(0, len(split), CHUNK):
        means = area_average(to_tensor(split.x[i : i + CHUNK]), (side, side))
        x[i : i + CHUNK] = means.mul(255).round().byte().permute(0, 2, 3, 1).numpy()
    return replace(split, x=x)
