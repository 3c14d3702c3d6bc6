"""A file of weights of a network of small fields, untrained, for tests of what is made of it."""

from __future__ import annotations

from pathlib import Path

import torch

from training.data.dataset import Dataset
from training.loop.weights import Kept, groups_of, write_kept
from training.models import ModelSpec, build_model
from training.models.small_field import SmallField
from training.recipes.training import Recipe


def random_small_field(*, classes: int, side: int, width: int = 8, logarithm: float | None = None) -> SmallField:
    """Random weights and running statistics, in evaluation mode."""
    torch.manual_seed(0)
    spec = ModelSpec(arch="small_field", width=width, logarithm=logarithm)
    network = build_model(spec, classes=classes, mean=[0.4, 0.5, 0.6], std=[0.2, 0.25, 0.3], side=side)
    assert isinstance(network, SmallField)
    with torch.no_grad():
        network.place.normal_(0, 0.3)
        network(torch.rand(32, 3, side, side))
    return network.eval()


def write_small_field(path: Path, data: Dataset) -> Path:
    """That of `data`, in the file `path`."""
    network = random_small_field(classes=len(data.classes), side=data.train.x.shape[1])
    stages = [{"name": "windows", "epochs": 1, "lr": 0.1, "worst_windows": {}}]
    model = {"arch": "small_field", "width": 8}
    recipe = Recipe.model_validate({"name": "fields", "data": {"source": "npz:toy"}, "model": model, "stages": stages})
    kept = Kept(recipe=recipe, data=data.describe(), groups=groups_of(data), epochs=0, core_hours=None)
    write_kept(path, dict(network.state_dict()), kept)
    return path
