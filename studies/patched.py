"""How kept networks answer patches, strips, bars and stickers, side by side on the same images of select.

The attacks are those of the card's level 3 (`training.attacks.listed`), on each network itself: no detector and no
neutralisation. Nothing is read of the test split, so that networks can be chosen by these figures.

`python -m studies.patched training/weights/gtsrb-standard.safetensors build/standard.safetensors --n 240`
"""

from __future__ import annotations

from typing import Annotated, Any

import torch
import typer
from rich.table import Table

from studies.robust import Files, cell, drawn, opened, share, written
from training.attacks.listed import ATTACKS
from training.attacks.unaware import Scene
from training.commands.terminal import JsonPath, Threads, command, progress_bars, use_threads
from training.data.dataset import Split
from training.errors import TrainingError
from training.imaging.pixels import to_tensor
from training.loop.selection import accuracy
from training.models.network import Network
from training.recipes.evaluation import Evaluation
from training.util.module_modes import frozen, seeded
from training.util.signatures import StepProgress, silent

FAMILIES = tuple(name for name, attack in ATTACKS.items() if attack.level == "3")


def patched_report(
    network: Network,
    split: Split,
    names: list[str],
    *,
    n: int,
    seed: int = 0,
    progress: StepProgress = silent,
) -> dict[str, Any]:
    """Accuracy of `network` on a split, and on `n` of its images under each of the attacks `names`."""
    some = drawn(split, n=n, seed=seed)
    x, y = to_tensor(some.x), torch.from_numpy(some.y)
    report: dict[str, Any] = {"clean": {"mean": accuracy(network, split), "n": len(split)}}
    for number, name in enumerate(names):
        attack, made = ATTACKS[name], []
        scene = Scene(network, Evaluation(), lambda _trained: [], seeded(seed, number))
        with frozen(network):
            for at in range(0, n, attack.chunk):
                part = slice(at, at + attack.chunk)
                made.append(attack.make(scene, x[part], y[part]).adversarial)
                progress(attack.title, min(n, at + attack.chunk), n)
            with torch.no_grad():
                right = torch.cat([network(each).argmax(1) for each in made]) == y
        report[name] = share(right.numpy(), some.group)
    return report


def main(
    files: Files,
    json_path: JsonPath = None,
    n: Annotated[int, typer.Option("--n", min=2, help="Number of images under attack.")] = 240,
    attacks: Annotated[
        list[str] | None,
        typer.Option("--attack", help="Name of an attack; may be repeated. All of level 3 by default."),
    ] = None,
    seed: int = 0,
    threads: Threads = 1,
) -> None:
    """Accuracy of kept networks under patches and obstacles, on the select split."""
    use_threads(threads)
    names = attacks or list(FAMILIES)
    if unknown := sorted(set(names) - set(FAMILIES)):
        raise TrainingError(f"no such attack: {', '.join(unknown)}; there are {', '.join(FAMILIES)}")
    data, networks = opened(files)
    rows, table = [], Table("attack", *(path.name for path in files))
    with progress_bars() as bars:
        for path, (kept, network) in zip(files, networks, strict=True):
            found = patched_report(network, data.select, names, n=n, seed=seed, progress=bars.step)
            epochs, hours = kept.totals
            rows.append({"file": path.name, "epochs": epochs, "recorded_core_hours": hours, **found})
    table.add_row("none, the whole split", *(f"{100 * row['clean']['mean']:.2f}" for row in rows))
    for name in names:
        table.add_row(ATTACKS[name].title, *(cell(row[name]) for row in rows))
    written(table, rows, json_path, data, n=n, seed=seed)


if __name__ == "__main__":
    typer.run(command(main))
