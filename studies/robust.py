"""How robust networks are that are kept as files (`palisade weights`), side by side on the same images of select.

Clean accuracy on the whole split; accuracy under PGD (Linf, margin loss, random start) on `n` random images of it.
With a teacher also what J-SIGR works on: the Jacobian norm and the share of the input gradient's energy outside what
the teacher finds important. Nothing is read of the test split, so that networks can be chosen by these figures.

`python -m studies.robust BEFORE.safetensors training/weights/gtsrb-companion.safetensors --n 1000 --steps 20`
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from rich.table import Table

from training.attacks.early import pgd_until_fooled
from training.bundling.provenance import load_data
from training.commands.figures import today, write_json
from training.commands.terminal import JsonPath, Threads, command, console, progress_bars, use_threads
from training.data.dataset import Dataset, Split
from training.errors import TrainingError
from training.export.fold import folded
from training.imaging.pixels import to_tensor
from training.loop.selection import accuracy
from training.loop.weights import Kept, load_kept, read_kept
from training.losses.jacobian import jacobian_norm
from training.losses.perturbation_saliency import important_mask, perturbation_saliency
from training.losses.selective import off_mask_share
from training.models.network import Network
from training.util.module_modes import seeded
from training.util.signatures import StepProgress, silent
from training.util.statistics import interval

RADII = (4, 8)
GRID, MASS = 6, 0.5
"""Of the teacher's maps, as the recipes have them."""
Files = Annotated[list[Path], typer.Argument(help="Files of weights; the data are those of the last one.")]


def opened(files: list[Path]) -> tuple[Dataset, list[tuple[Kept, Network]]]:
    """The data of the last file, and every file's network, BatchNorm folded; `TrainingError` on other splits."""
    data = load_data(read_kept(files[-1]).recipe)
    found = [load_kept(path, read_kept(path).recipe.model, data) for path in files]
    side = data.train.x.shape[1]
    return data, [(kept, folded(network, side=side)) for kept, network in found]


def drawn(split: Split, *, n: int, seed: int) -> Split:
    """`n` random images of a split; `TrainingError` if it has fewer."""
    if n > len(split):
        raise TrainingError(f"the split has {len(split)} images, {n} are asked for")
    return split.take(np.random.default_rng(seed).permutation(len(split))[:n])


def share(right: np.ndarray, group: np.ndarray) -> dict[str, Any]:
    """Mean of `right` (N,) and its 95 % interval over groups (N,)."""
    return {"mean": float(right.mean()), "interval": interval(right, group), "n": len(right)}


def cell(found: dict[str, Any]) -> str:
    """A `share` in percent, with its interval."""
    return "{:.1f} [{:.1f}, {:.1f}]".format(*(100 * value for value in (found["mean"], *found["interval"])))


def written(
    table: Table, rows: list[dict[str, Any]], json_path: Path | None, data: Dataset, *, n: int, seed: int
) -> None:
    """Print the table of networks on the select split, and write its rows to `json_path` if there is one."""
    if json_path:
        split = {"split": "select", "data": data.name.partition(":")[2], "n": n, "seed": seed}
        write_json(json_path, {"date": today(), **split, "networks": rows})
    console.print(table)
    console.print(f"select split, n = {n} of {len(data.select)}, seed {seed}: %, [95 % interval over groups]")


def robust_report(
    network: Network, split: Split, *, n: int, steps: int, seed: int = 0, progress: StepProgress = silent
) -> dict[str, Any]:
    """Accuracy of `network` on a split, and on `n` of its images under PGD of `RADII` (of 255)."""
    some = drawn(split, n=n, seed=seed)
    x = to_tensor(some.x).contiguous(memory_format=torch.channels_last)
    y = torch.from_numpy(some.y)
    report: dict[str, Any] = {"clean": {"mean": accuracy(network, split), "n": len(split)}}
    for eps in RADII:
        generator = seeded(seed, eps)

        def step(done: int, total: int, eps: int = eps) -> None:
            progress(f"PGD {eps}/255", done, total)

        _, fooled = pgd_until_fooled(network, x, y, eps=eps / 255, steps=steps, generator=generator, progress=step)
        report[f"pgd{steps}_{eps}"] = share(~fooled.numpy(), some.group)
    return report


def gradient_report(network: Network, teacher: Network, split: Split) -> dict[str, Any]:
    """Median R_J and mean off-mask share (`training.losses`) of `network` on the images of a split."""
    x, y = to_tensor(split.x), torch.from_numpy(split.y)
    maps = perturbation_saliency(teacher, x, grid=GRID)
    important = important_mask(maps, size=(x.shape[2], x.shape[3]), mass=MASS)
    outside = off_mask_share(network, x, y, important).numpy()
    return {"jacobian": float(jacobian_norm(network, x).median()), "off_mask": share(outside, split.group)}


def main(
    files: Files,
    json_path: JsonPath = None,
    n: Annotated[int, typer.Option("--n", min=2, help="Number of images under attack.")] = 1000,
    steps: Annotated[int, typer.Option(min=1, help="Steps of PGD.")] = 20,
    teacher: Annotated[
        Path | None, typer.Option(help="Weights of a teacher: also measure R_J and the off-mask share.")
    ] = None,
    gradients: Annotated[int, typer.Option(min=2, help="Number of images for these.")] = 400,
    seed: int = 0,
    threads: Threads = 1,
) -> None:
    """Clean and robust accuracy of kept networks on the select split."""
    use_threads(threads)
    data, networks = opened(files)
    known = None if teacher is None else opened([teacher, files[-1]])[1][0][1]
    table = Table("network", "epochs", "recorded core hours", "clean", *(f"PGD-{steps} {eps}/255" for eps in RADII))
    for column in ("median R_J", "off-mask share") if known else ():
        table.add_column(column)
    rows = []
    with progress_bars() as bars:
        for path, (kept, network) in zip(files, networks, strict=True):
            found = robust_report(network, data.select, n=n, steps=steps, seed=seed, progress=bars.step)
            if known is not None:
                found |= gradient_report(network, known, drawn(data.select, n=gradients, seed=seed))
            epochs, hours = kept.totals
            rows.append({"file": path.name, "epochs": epochs, "recorded_core_hours": hours, **found})
            cells = [cell(found[f"pgd{steps}_{eps}"]) for eps in RADII]
            if known is not None:
                cells += [f"{found['jacobian']:.1f}", cell(found["off_mask"])]
            table.add_row(path.name, str(epochs), f"{hours:.2f}", f"{100 * found['clean']['mean']:.2f}", *cells)
    written(table, rows, json_path, data, n=n, seed=seed)


if __name__ == "__main__":
    typer.run(command(main))
