"""Networks of other widths, trained here on the training split: the surrogates of a black-box attacker.

Two are trained in the ordinary way. Two are trained adversarially, for as many epochs: what fools those is less of a
texture that one network happens to read, and transfers better to other robust networks, the companion among them.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

from torch import nn

from training.attacks.unaware import Trained
from training.evaluate.harness.bench import Bench
from training.loop.runs import load_run
from training.loop.trainer import Trainer
from training.models import ModelSpec
from training.recipes.training import Adversary, DataSpec, Recipe, Stage

WIDTHS = (16, 24)


ADVERSARY = Adversary(eps=8, steps=2, clean_weight=1.0)


def surrogates(bench: Bench, trained: Trained) -> list[nn.Module]:
    """The two networks of a kind, trained now (it resumes) or before; seeds and widths are none of the bundle's."""
    return [_network(bench, number, width, trained).to(bench.device) for number, width in enumerate(WIDTHS)]


def _network(bench: Bench, number: int, width: int, trained: Trained) -> nn.Module:
    epochs, robust = bench.settings.surrogate_epochs, trained == "adversarially"
    kind = "robust-surrogate" if robust else "surrogate"
    folder = bench.store.folder / f"{kind}-{number}-{epochs}-{bench.networks_key}"
    stage = Stage(name="standard", epochs=epochs, lr=0.1)
    if robust:
        stage = Stage(name="adversarial", epochs=epochs, lr=0.05, adversary=ADVERSARY)
    recipe = Recipe(
        name=f"{kind}-{number}",
        seed=(2000 if robust else 1000) + number + bench.settings.seed,
        data=DataSpec(source=bench.data.name),
        model=ModelSpec(width=width),
        stages=[stage],
    )
    if not (folder / "weights.safetensors").is_file():
        Trainer(recipe, bench.data, folder).run(partial(_told, bench, recipe.name))
    return load_run(Path(folder), bench.data)[1].eval()


def _told(bench: Bench, name: str, event: dict[str, object]) -> None:
    if isinstance(batch := event.get("batch"), int) and isinstance(batches := event.get("batches"), int):
        bench.progress(f"training {name}, an epoch", batch, batches)
