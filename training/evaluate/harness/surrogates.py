"""Two networks of other widths, trained here on the training split: the surrogates of a black-box attacker."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from torch import nn

from training.evaluate.harness.bench import Bench
from training.loop.runs import load_run
from training.loop.trainer import Trainer
from training.models import ModelSpec
from training.recipes.training import DataSpec, Recipe, Stage

WIDTHS = (16, 24)


def surrogates(bench: Bench) -> list[nn.Module]:
    """The two networks, trained now (it resumes) or before; seeds and widths are none of the bundle's."""
    return [_network(bench, number, width).to(bench.device) for number, width in enumerate(WIDTHS)]


def _network(bench: Bench, number: int, width: int) -> nn.Module:
    epochs = bench.settings.surrogate_epochs
    folder = bench.store.folder / f"surrogate-{number}-{epochs}-{bench.networks_key}"
    recipe = Recipe(
        name=f"surrogate-{number}",
        seed=1000 + number + bench.settings.seed,
        data=DataSpec(source=bench.data.name),
        model=ModelSpec(width=width),
        stages=[Stage(name="standard", epochs=epochs, lr=0.1)],
    )
    if not (folder / "weights.safetensors").is_file():
        Trainer(recipe, bench.data, folder).run(partial(_told, bench, recipe.name))
    return load_run(Path(folder), bench.data)[1].eval()


def _told(bench: Bench, name: str, event: dict[str, object]) -> None:
    if isinstance(batch := event.get("batch"), int) and isinstance(batches := event.get("batches"), int):
        bench.progress(f"training {name}, an epoch", batch, batches)
