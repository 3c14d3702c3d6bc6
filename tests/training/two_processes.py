"""Runs that go through everything that depends on the batch; also a script, for `torchrun` to start."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from tests.training.toy import random_network, toy_dataset
from training.loop.trainer import Trainer
from training.recipes.training import Recipe

ATTACK = {"eps": 4, "steps": 2}
TERMS = {
    "fraction": 0.5,
    "jacobian": {"weight": 0.001},
    "selective": {"weight": 0.01, "grid": 4, "form": "ratio"},
    "align": {"weight": 0.01, "grid": 4, "every": 2},
    "sns": {"weight": 0.1, "pairs": 16, "ramp_epochs": 1},
}
STAGES: dict[str, list[dict[str, Any]]] = {
    "standard": [{"name": "standard", "epochs": 1, "lr": 0.05, "mask_augmentation": {}}],
    "awp": [{"name": "awp", "epochs": 1, "lr": 0.05, "awp": {}}],
    "terms": [
        {"name": "terms", "epochs": 1, "lr": 0.05, "batchnorm": "frozen", "terms": TERMS}
        | {"adversary": ATTACK | {"clean_weight": 0.5}},
    ],
    "trades": [{"name": "trades", "epochs": 1, "lr": 0.05, "trades": ATTACK}],
}


def recipe(name: str) -> Recipe:
    return Recipe.model_validate(
        {
            "name": name,
            "data": {"source": "npz:toy"},
            "model": {"width": 4},
            "batch": 32,
            "ema": 0.9,
            "precision": "fp32",
            "augmentation": {"flip": True},
            "stages": STAGES[name],
            "early_stopping": {"metric": "pgd", "images": 16, "steps": 2},
        }
    )


def train(name: str, out: Path) -> dict[str, Tensor]:
    """Weights, averaged weights, and the gradient of the last step after clipping."""
    torch.set_num_threads(1)
    data, teacher, init = toy_dataset(train=96), random_network(3), random_network(4)
    trainer = Trainer(recipe(name), data, out / name, teacher=teacher, init=init)
    trainer.run()
    made = {f"gradient/{key}": p.grad for key, p in trainer.model.named_parameters() if p.grad is not None}
    made |= {f"model/{key}": value for key, value in trainer.model.state_dict().items()}
    made |= {f"average/{key}": value for key, value in trainer.average.state_dict().items()}
    return {key: value.contiguous() for key, value in made.items()}


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    for run in STAGES:
        save_file(train(run, folder), folder / f"{run}-{torch.distributed.get_rank()}.safetensors")
    torch.distributed.destroy_process_group()
