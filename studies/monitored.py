"""Which layers a detector should watch: chosen by vulnerability, all, the last, or random ones.

Layers are chosen, and attacks made, on the select split; thresholds come from the calibrate split. The test split has
no part in it.

`python -m studies.monitored BUNDLE`
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import Tensor

from training.analysis.contrast import ATTACKS, BATCH, predictions, white_box
from training.analysis.layers import layer_ablation, layer_report, vulnerable_layers, watch
from training.analysis.sample import sample
from training.analysis.subjects import load_subject
from training.analysis.tables import monitored_table
from training.attacks.coarse import searched
from training.attacks.patch import patch_attack
from training.commands.figures import step_of, today, write_json
from training.commands.terminal import Subject, Threads, command, console, progress_bars, use_threads
from training.data.dataset import Dataset
from training.imaging.pixels import to_tensor
from training.models.network import Network
from training.util.module_modes import seeded
from training.util.signatures import StepProgress, silent

PATCH_SHARE = 0.22
PROBE_IMAGES = 2000


def monitored_layers(
    network: Network,
    data: Dataset,
    *,
    images: int = 300,
    count: int = 2,
    steps: int = 20,
    draws: int = 20,
    seed: int = 0,
    progress: StepProgress = silent,
) -> dict[str, Any]:
    """The `count` most vulnerable of the network's tapped layers, and how detection would fare with them and without.

    `images` of the select split are attacked with PGD (Linf and L2) and patches; those that the network then gets wrong
    count. JSON content, with `layer_ablation`'s figures by set of layers and attack.
    """
    x, y, group = sample(data.select, images, seed=seed)
    fit = sample(data.train, PROBE_IMAGES, seed=seed)[:2]
    report, *_ = layer_report(
        network, x, y, group, fit=fit, classes=len(data.classes), eps=8 / 255, steps=steps, seed=seed, progress=progress
    )
    taps = list(network.tap_channels)
    chosen = vulnerable_layers(report, count=count, among=taps)
    progress("attacks", 0, 1)
    attacked = _attacks(network, x, y, steps=steps, seed=seed)
    progress("watching", 0, 1)
    watched = watch(
        network, fit=to_tensor(data.select.x), benign=to_tensor(data.calibrate.x), attacked=attacked, layers=taps
    )
    found = layer_ablation(watched, chosen, draws=draws, seed=seed)
    values = {
        row["layer"]: row["own_label"]["grad_cam"]["vulnerability"] for row in report["layers"] if row["layer"] in taps
    }
    return {"images": len(x), "fit": len(data.select), "vulnerability": values, **found}


def _attacks(network: Network, x: Tensor, y: Tensor, *, steps: int, seed: int) -> dict[str, Tensor]:
    """Attacked images (n, C, H, W), right before and wrong after, by attack; attacks without any are left out."""
    right = predictions(network, x) == y
    x, y = x[right], y[right]
    made = {attack: white_box(network, x, y, attack, steps=steps, seed=seed) for attack in ATTACKS}
    side, generator = round(PATCH_SHARE * min(x.shape[2:])), seeded(seed, 8)
    predict = searched(network)
    patched = [
        patch_attack(predict, *some, side=side, generator=generator)[0]
        for some in zip(x.split(BATCH), y.split(BATCH), strict=True)
    ]
    made[f"patch {side}x{side}"] = torch.cat(patched)
    fooled = {name: images[predictions(network, images) != y] for name, images in made.items()}
    return {name: images for name, images in fooled.items() if len(images)}


def main(
    subject: Subject = Path("models/gtsrb"),
    out: Annotated[Path, typer.Option(help="JSON file to write the figures to.")] = Path("build/monitored.json"),
    images: Annotated[int, typer.Option(min=8, help="Number of images of the select split to attack.")] = 300,
    count: Annotated[int, typer.Option(min=1, help="Number of layers to choose.")] = 2,
    seed: int = 0,
    threads: Threads = None,
) -> None:
    """Which layers should the detector watch? The most vulnerable ones against all, the last, and random ones."""
    use_threads(threads)
    chosen = load_subject(subject)
    reports: dict[str, Any] = {}
    with progress_bars() as bars:
        for name, network in chosen.networks.items():
            reports[name] = monitored_layers(
                network, chosen.data, images=images, count=count, seed=seed, progress=partial(step_of, bars, name)
            )
    write_json(out, {"subject": chosen.name, "date": today(), "split": "select", "networks": reports})
    for name, report in reports.items():
        console.print(monitored_table(name, report))
    console.print(f"AUROC, detection at 5 % false positives; {images} select images attacked, seed {seed}; {out}")


if __name__ == "__main__":
    typer.run(command(main))
