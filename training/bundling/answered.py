"""Unlabelled images: the network's own answers stand in for their labels where labels are needed."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import nn

from training.data.dataset import SPLITS, Dataset, Split
from training.defence.constants import batch_of
from training.imaging.pixels import to_tensor
from training.util.module_modes import frozen


def answered(data: Dataset, network: nn.Module) -> Dataset:
    """`data`, whose unlabelled images are labelled as `network` answers them."""
    if data.labelled:
        return data
    splits = {name: _relabelled(getattr(data, name), network) for name in SPLITS}
    return Dataset(data.name, data.classes, **splits, notes=data.notes, described=data.describe())


@torch.no_grad()
def _relabelled(split: Split, network: nn.Module) -> Split:
    if not len(split):
        return split
    size = batch_of(*split.x.shape[1:3])
    with frozen(network):
        answers = [network(to_tensor(split.x[i : i + size])).argmax(1).numpy() for i in range(0, len(split), size)]
    return replace(split, y=np.where(split.y < 0, np.concatenate(answers), split.y))
