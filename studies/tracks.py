"""How well tracks are inferred from likeness where they are known: `python -m studies.tracks BUNDLE`.

On the select and calibrate images, which the bundle's networks were not trained on: pairs of images that share a track,
and the standard errors of error rates by image, by true and by inferred track (`training.evaluate.harness.tracks`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from rich.console import Console
from rich.table import Table

from benchmarks.record import record
from gateway.core.loading import load_bundle
from training.bundling.networks import load_defence
from training.bundling.provenance import made_with
from training.commands.terminal import JsonPath, Threads, command, use_threads
from training.data.dataset import Split
from training.evaluate.harness.bench import labels
from training.evaluate.harness.tracks import inferred_tracks
from training.imaging.pixels import to_tensor


def standard_error(outcome: np.ndarray, group: np.ndarray) -> float:
    """Of the mean of `outcome` (N,), over groups (N,)."""
    names, index = np.unique(group, return_inverse=True)
    total = np.bincount(index, weights=outcome - outcome.mean())
    return float(np.sqrt((total**2).sum() * len(names) / max(len(names) - 1, 1)) / len(outcome))


def pairs(true: np.ndarray, found: np.ndarray) -> tuple[float, float]:
    """Share of the pairs of one true track that are found together, and of those found together that are of one."""
    _, cells = np.unique(np.stack([true, found]), axis=1, return_counts=True)
    both, of_true, of_found = (
        float((counts * (counts - 1)).sum())
        for counts in (cells, *(np.unique(each, return_counts=True)[1] for each in (true, found)))
    )
    return both / of_true, both / of_found


def measure(split: Split, outcomes: dict[str, np.ndarray]) -> dict[str, Any]:
    """How the inferred tracks of `split`, whose groups are the true ones, compare with them."""
    found = inferred_tracks(split.x, split.y, frames=round(len(split) / len(np.unique(split.group))))
    recall, precision = pairs(split.group, found)
    by = {"image": np.arange(len(split)), "track": split.group, "inferred": found}
    return {
        "n": len(split),
        "tracks": len(np.unique(split.group)),
        "pairs_found": recall,
        "pairs_right": precision,
        "standard_errors": {
            name: {kind: standard_error(outcome, group) for kind, group in by.items()}
            for name, outcome in outcomes.items()
        },
    }


def main(
    folder: Annotated[
        Path, typer.Argument(metavar="BUNDLE", help="Folder of a bundle whose training data have tracks.")
    ],
    *,
    threads: Threads = None,
    json_path: JsonPath = None,
) -> None:
    """Compare inferred tracks with true ones."""
    use_threads(threads)
    bundle = load_bundle(folder)
    data, _ = made_with(bundle)
    parts = (data.select, data.calibrate)
    split = Split(*(np.concatenate([getattr(part, name) for part in parts]) for name in ("x", "y", "group")))
    defence = load_defence(bundle)
    with torch.no_grad():
        wrong = {
            f"{role} errs": (labels(network, to_tensor(split.x)) != split.y).astype(float)
            for role, network in (("answering", defence.network), ("companion", defence.companion))
            if network is not None
        }
    found = measure(split, wrong)
    table = Table("share", "by image", "by true track", "by inferred track")
    for name, errors in found["standard_errors"].items():
        table.add_row(name, *(f"{100 * errors[kind]:.2f} %" for kind in ("image", "track", "inferred")))
    console = Console()
    console.print(
        f"{found['n']} images of {found['tracks']} tracks: {100 * found['pairs_found']:.0f} % of the pairs found, "
        f"{100 * found['pairs_right']:.0f} % of those put together right. Standard errors:"
    )
    console.print(table)
    if json_path is not None:
        record(json_path, "inferred tracks", {"bundle": f"{bundle.name} {bundle.version}", **found})


if __name__ == "__main__":
    typer.run(command(main))
