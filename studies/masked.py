"""How many labels of kept networks are agreed and proved against a square patch, side by side on images of select.

The gateway's certifier (`gateway.core.certificate`) on the network's own label, each mask inpainted as the gateway
does. A network of small fields is certified by windows of its cells (`gateway.core.small_field`). `studies.certified`
measures the same of a bundle as it is served, on the test split.

`python -m studies.masked BEFORE.safetensors training/weights/gtsrb-standard.safetensors --n 400 --patch 5 --patch 3`
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import numpy as np
import torch
import typer
from rich.table import Table

from gateway.core.certificate import LEADS, CertificateWanted, Level, certificate_of, certify
from gateway.core.masks import MaskSet, default_k
from gateway.core.small_field import SmallFieldFound, windows_for
from studies.robust import Files, cell, drawn, opened, share, written
from training.commands.terminal import JsonPath, Threads, command, progress_bars, use_threads
from training.data.dataset import Split
from training.imaging.inpaint import inpaint
from training.imaging.pixels import to_tensor
from training.loop.selection import accuracy
from training.models.network import Network
from training.models.small_field import SmallField
from training.util.signatures import StepProgress, silent


def masked_report(
    network: Network, split: Split, patches: Sequence[int], *, n: int, seed: int = 0, progress: StepProgress = silent
) -> dict[str, Any]:
    """Clean accuracy on a split; shares of `n` of its images by level, for square patches of the sides `patches`."""
    some = drawn(split, n=n, seed=seed)
    x = to_tensor(some.x)
    with torch.no_grad():
        labels = network(x).argmax(1).numpy()
    height, width = x.shape[2:]
    report: dict[str, Any] = {"clean": {"mean": accuracy(network, split), "n": len(split)}}
    for patch in patches:
        wanted = CertificateWanted(MaskSet(height, width, patch, default_k(height, width)))
        levels = []
        for i, label in enumerate(labels):
            if isinstance(network, SmallField):
                levels.append(level_by_windows(network, x[i], int(label), wanted))
            else:
                levels.append(level_of(network, x[i], int(label), wanted))
            progress(f"patch {patch}", i + 1, n)
        found, right = np.array(levels), labels == some.y
        agreed, proved = found != "none", found == "proved"
        report[str(patch)] = {
            "agreed_and_right": share(agreed & right, some.group),
            "proved_and_right": share(proved & right, some.group),
            "agreed_and_wrong": int((agreed & ~right).sum()),
            "proved_and_wrong": int((proved & ~right).sum()),
        }
    return report


@torch.no_grad()
def level_of(network: Network, x: torch.Tensor, label: int, wanted: CertificateWanted) -> Level:
    """The level that the label of the image `x` (C, H, W) in [0, 1] reaches."""
    search = certify(label, wanted, LEADS["fp32"])
    masks = next(search)
    while True:
        hidden = torch.from_numpy(np.stack(masks))
        logits = network(inpaint(x.expand(len(hidden), *x.shape), hidden))
        try:
            masks = search.send(logits.numpy())
        except StopIteration as ended:
            level: Level = ended.value.level
            return level


@torch.no_grad()
def level_by_windows(network: SmallField, x: torch.Tensor, label: int, wanted: CertificateWanted) -> Level:
    """The level that the label reaches without windows of cells."""
    windows = windows_for(network.spec, wanted.masks.height, wanted.masks.width, wanted.masks.patch)
    evidence = network.cells(x[None])[0].flatten(1)
    leads = []
    for kept in (1 - windows.windows, windows.kept):
        logits = evidence @ torch.from_numpy(kept)
        others = torch.cat([logits[:label], logits[label + 1 :]]).amax(0)
        leads.append(float((logits[label] - others).min()))
    return certificate_of(SmallFieldFound(label, *leads), label, wanted, LEADS["fp32"]).level


def main(
    files: Files,
    json_path: JsonPath = None,
    n: Annotated[int, typer.Option("--n", min=2, help="Number of images that are certified.")] = 400,
    patch: Annotated[list[int] | None, typer.Option(min=1, help="Side of the patch; may be repeated.")] = None,
    seed: int = 0,
    threads: Threads = 1,
) -> None:
    """Clean accuracy of kept networks on the select split, and the share of its labels that are agreed and proved."""
    use_threads(threads)
    data, networks = opened(files)
    patches = patch or [5, 3]
    table = Table("network", "clean", *(f"{p} x {p}: {level}" for p in patches for level in ("agreed", "proved")))
    rows = []
    with progress_bars() as bars:
        for path, (kept, network) in zip(files, networks, strict=True):
            found = masked_report(network, data.select, patches, n=n, seed=seed, progress=bars.step)
            epochs, hours = kept.totals
            rows.append({"file": path.name, "epochs": epochs, "recorded_core_hours": hours, **found})
            cells = [cell(found[str(p)][f"{level}_and_right"]) for p in patches for level in ("agreed", "proved")]
            table.add_row(path.name, f"{100 * found['clean']['mean']:.2f}", *cells)
    written(table, rows, json_path, data, n=n, seed=seed)


if __name__ == "__main__":
    typer.run(command(main))
