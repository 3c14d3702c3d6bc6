"""Regions of attack at any side, and what they cost: `python -m studies.any_side FOLDER`.

Photographs are centre-cropped to each side and random patches put on them: does the served localiser's window cover
them? And how long a core takes for the localiser, the saliency of a given gradient and inpainting, in ONNX Runtime.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any, get_args

import numpy as np
import onnxruntime as ort
import torch
import typer
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from benchmarks.record import record
from gateway.core.preprocessing import Resize
from training.attacks.patch import Kind, random_patches
from training.commands.terminal import JsonPath, Threads, command, use_threads
from training.data.folders import read_images
from training.defence.localisers import LOCALISER, localiser_named
from training.defence.saliency import saliency_map
from training.errors import TrainingError
from training.evaluate.harness.shown import ranged
from training.export.onnx_file import EXAMPLE_BATCH, export_module
from training.imaging.inpaint import inpaint
from training.imaging.pixels import to_tensor
from training.util.module_modes import seeded
from training.util.statistics import interval

SIDES, SHARES = (32, 64, 224, 384), (0.02, 0.05)
COVERED = 0.8  # of a patch's pixels
BATCH, RUNS = 20, 20
Timed = Callable[[Tensor, Tensor], tuple[Tensor, ...]]
PARTS: dict[str, Timed] = {
    "localiser": lambda pixels, mask: localiser_named(LOCALISER).locate(pixels * (1 - mask[:, None])),
    "saliency": lambda pixels, mask: (saliency_map(pixels, pixels * mask[:, None]),),
    "inpainting": lambda pixels, mask: (inpaint(pixels, mask),),
}


class _Part(nn.Module):
    def __init__(self, function: Timed) -> None:
        super().__init__()
        self.function = function

    def forward(self, pixels: Tensor, mask: Tensor) -> tuple[Tensor, ...]:
        return self.function(pixels, mask)


def covered(x: Tensor, kind: Kind, share: float, *, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Whether the window covers a random patch of `share` of the area of x (N, C, S, S), and the window's share."""
    patches = random_patches(x, round(share**0.5 * x.shape[2]), kind, seeded(seed))
    patched, truth = patches.on(x), patches.mask(x)
    found = torch.cat([localiser_named(LOCALISER).locate(part)[0] for part in patched.split(BATCH)])
    inside = (found * truth).sum((1, 2)) / truth.sum((1, 2))
    return (inside >= COVERED).numpy(), found.mean((1, 2)).numpy()


def milliseconds(function: Timed, side: int) -> float:
    """Least processor time of one image of `side` pixels in ONNX Runtime on one core; a ninth of it is the mask."""
    pixels, mask = torch.rand(EXAMPLE_BATCH, 3, side, side, generator=seeded(0)), torch.zeros(EXAMPLE_BATCH, side, side)
    mask[:, : side // 3, : side // 3] = 1
    outputs = [f"output{i}" for i in range(len(function(pixels, mask)))]
    with TemporaryDirectory() as folder:
        path = Path(folder) / "part.onnx"
        export_module(_Part(function), path, inputs={"pixels": pixels, "mask": mask}, outputs=outputs)
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    given = {"pixels": pixels[:1].numpy(), "mask": mask[:1].numpy()}
    spent = []
    for _ in range(RUNS):
        before = time.process_time()
        session.run(None, given)
        spent.append(time.process_time() - before)
    return 1000 * min(spent)


def main(
    folder: Annotated[Path, typer.Argument(help="Folder of photographs (JPEG).")],
    n: Annotated[int, typer.Option(min=2, help="Number of photographs.")] = 100,
    seed: int = 0,
    json_path: JsonPath = None,
    threads: Threads = 1,
) -> None:
    """Localise random patches at each side, time the parts, and print both."""
    use_threads(threads)
    paths = sorted(folder.glob("*.jpg"))
    if len(paths) < 2:
        raise TrainingError(f"{folder}: no photographs (*.jpg)")
    chosen = [paths[i] for i in np.random.default_rng(seed).permutation(len(paths))[:n]]
    rows: list[dict[str, Any]] = []
    table = Table("side", "patch", "share", "covered", "window", title=f"n = {len(chosen)}, seed {seed}")
    costs = Table("side", *PARTS, title="ms of one core")
    for side in SIDES:
        x = to_tensor(read_images(chosen, size=side, resize=Resize(rule="center_crop")))
        for kind in get_args(Kind):
            for share in SHARES:
                hits, area = covered(x, kind, share, seed=seed)
                bounds = interval(hits, np.arange(len(hits)))
                row = {"side": side, "kind": kind, "share": share, "covered": float(hits.mean())}
                rows.append(row | {"interval": bounds, "window": float(area.mean())})
                cell = ranged(float(hits.mean()), bounds)
                table.add_row(str(side), kind, f"{100 * share:g} %", cell, f"{100 * area.mean():.1f} %")
    spent = {side: {name: milliseconds(function, side) for name, function in PARTS.items()} for side in SIDES}
    for side, row in spent.items():
        costs.add_row(str(side), *(f"{value:.2f}" for value in row.values()))
    Console().print(table)
    Console().print(costs)
    if json_path is not None:
        figures = {"n": len(chosen), "seed": seed, "covered_at": COVERED, "rows": rows, "milliseconds": spent}
        record(json_path, "regions of attack at any side, random patches on photographs", figures)


if __name__ == "__main__":
    typer.run(command(main))
