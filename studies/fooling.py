"""Images under an attack of the card that fool the answering network, of any split: what several studies begin with."""

from __future__ import annotations

from typing import Annotated

import numpy as np
import torch
import typer

from training.attacks.coarse import searched
from training.attacks.listed import ATTACKS
from training.attacks.unaware import Scene
from training.data.dataset import Split
from training.errors import TrainingError
from training.imaging.pixels import to_tensor
from training.models.network import Network
from training.recipes.evaluation import Evaluation
from training.served.scoring import to_uint8
from training.util.module_modes import seeded

BATCH = 64
PerAttack = Annotated[int, typer.Option("--n", min=2, help="Number of images of each attack that fool.")]
Benign = Annotated[int | None, typer.Option(min=20, help="Number of benign images of each split (default: all).")]
Attacks = Annotated[list[str] | None, typer.Option(help="An attack of the card; may be repeated.")]


def known(names: list[str]) -> list[str]:
    """The names, all of attacks that need no other network; `TrainingError` naming what there is."""
    if unknown := sorted(set(names) - set(ATTACKS)):
        raise TrainingError(f"unknown attacks {', '.join(unknown)}; there are {', '.join(ATTACKS)}")
    return names


def some_of(split: Split, count: int | None, *, seed: int, stage: int) -> Split:
    """`count` random images of a split, in its order; None: all."""
    return split.take(np.sort(np.random.default_rng([seed, stage]).permutation(len(split))[:count]))


def fooling(network: Network, split: Split, name: str, n: int, effort: Evaluation, seed: int) -> Split:
    """Images of `split` under the attack of that name that the network answers wrongly now, about `n`."""
    order, parts = np.random.default_rng([seed, 5]).permutation(len(split)), list[tuple[np.ndarray, ...]]()
    predict = searched(network)
    for start in range(0, len(order), BATCH):
        rows = order[start : start + BATCH]
        with torch.no_grad():
            rows = rows[network(to_tensor(split.x[rows])).argmax(1).numpy() == split.y[rows]]
        x, y = to_tensor(split.x[rows]), torch.from_numpy(split.y[rows])
        scene = Scene(predict, effort, lambda _trained: [], seeded(seed, 5, start))
        images = to_uint8(ATTACKS[name].make(scene, x, y).adversarial.detach().numpy())
        with torch.no_grad():
            fools = network(to_tensor(images)).argmax(1).numpy() != split.y[rows]
        parts.append((images[fools], split.y[rows[fools]], split.group[rows[fools]]))
        if sum(len(part[0]) for part in parts) >= n:
            break
    x_all, y_all, group = (np.concatenate(column)[:n] for column in zip(*parts, strict=True))
    if len(x_all) < 2:
        raise TrainingError(f"{name} fools the answering network on {len(x_all)} images: none to measure")
    return Split(x_all, y_all, group)
