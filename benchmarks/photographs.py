"""What a bundle of a network for photographs answers, flags and repairs: accuracy, benign flags, and attacks.

    python -m benchmarks.photographs --bundle models/imagenet --photos FOLDER --out FILE.json

`--photos` is the folder (with labels.csv) that the bundle was made of. Accuracy is that of all its files, through the
gateway's decoder and graph, beside a reference pipeline of torchvision's transforms and the network in torch. Flags and
attacks are of the test split, which nothing was fitted on. Attackers know the network, not the defence; of their
images those count that fool it.
"""

from __future__ import annotations

import csv
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from PIL import Image
from rich.console import Console
from rich.table import Table
from torch import Tensor

from benchmarks.record import record
from gateway.core.decode import to_pixels
from gateway.core.loading import load_bundle
from gateway.core.pipeline import Pipeline
from training.attacks.patch import patch_attack
from training.attacks.pgd import pgd
from training.bundling.networks import load_defence
from training.bundling.provenance import made_with
from training.data.dataset import Split
from training.imaging.pixels import to_tensor
from training.models.network import Network
from training.served.answers import Served, open_pipeline, serve
from training.served.scoring import to_uint8
from training.util.module_modes import seeded
from training.util.statistics import interval

ALPHAS = (0.01, 0.05)
DULL = (0.25, 0.6)  # greys and muted colours, of [0, 1]
BATCH = 10

Attack = Callable[[Network, Tensor, Tensor, torch.Generator], Tensor]


def attacks(side: int, *, steps: int) -> dict[str, Attack]:
    """By title: PGD in Linf, and squares of 2 and 5 % of the image, noisy, low-frequency and in dull colours."""

    def linf(network: Network, x: Tensor, y: Tensor, generator: torch.Generator, *, eps: int) -> Tensor:
        return pgd(network, x, y, eps=eps / 255, steps=steps, generator=generator)

    def square(
        network: Network, x: Tensor, y: Tensor, generator: torch.Generator, *, share: float, **more: Any
    ) -> Tensor:
        pixels = round(share**0.5 * side)
        found, _ = patch_attack(
            network, x, y, side=pixels, places=3, probe_steps=6, steps=2 * steps, generator=generator, **more
        )
        return found

    found: dict[str, Attack] = {f"PGD {eps}/255": partial(linf, eps=eps) for eps in (2, 4, 8)}
    for share in (0.02, 0.05):
        found[f"noisy patch of {share:.0%}"] = partial(square, share=share)
        found[f"low-frequency patch of {share:.0%}"] = partial(square, share=share, kind="low_frequency")
        found[f"sticker in dull colours of {share:.0%}"] = partial(square, share=share, kind="low_frequency", span=DULL)
    return found


def accuracy(pipeline: Pipeline, network: Network, photos: Path, console: Console) -> dict[str, Any]:
    """Top-1 of the reference pipeline and of the gateway on every file, answers as they are and as served."""
    from torchvision import transforms

    spec = pipeline.bundle.manifest.input
    reference = transforms.Compose(
        [
            transforms.Resize(256, transforms.InterpolationMode.BICUBIC),
            transforms.CenterCrop(spec.height),
            transforms.PILToTensor(),
        ]
    )
    with (photos / "labels.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    right = {"reference": 0, "gateway": 0, "served": 0}
    same, difference = 0, 0.0
    for start in range(0, len(rows), BATCH):
        files = [photos / row["file"] for row in rows[start : start + BATCH]]
        labels = np.array([int(row["class_index"]) for row in rows[start : start + BATCH]])
        theirs = torch.stack([reference(Image.open(path).convert("RGB")) for path in files]).float() / 255
        decoded = [pipeline.decode(path.read_bytes()) for path in files]
        with torch.no_grad():
            expected = network(theirs).argmax(1).numpy()
        decisions = pipeline.decide_images(decoded, explain=False)
        raw = np.array([decision.raw.prediction.index for decision in decisions])
        served = np.array([decision.served.prediction.index for decision in decisions])
        ours = to_pixels(np.stack(decoded))
        difference += float(np.abs(ours - theirs.numpy()).mean(axis=(1, 2, 3)).sum()) * 255
        same += int((raw == expected).sum())
        for name, answers in (("reference", expected), ("gateway", raw), ("served", served)):
            right[name] += int((answers == labels).sum())
        console.print(f"accuracy: {start + len(files)} of {len(rows)}", highlight=False)
    n = len(rows)
    return {
        "n": n,
        **{f"top1_{name}": count / n for name, count in right.items()},
        "same_answer": same / n,
        "mean_absolute_difference_of_255": difference / n,
    }


def flagged(pipeline: Pipeline, answers: Served, alpha: float) -> np.ndarray:
    """Which of N answers are flagged at `alpha` (N,)."""
    return np.asarray(answers.p_value <= pipeline.judge.cutoff(alpha))


def benign(pipeline: Pipeline, test: Split, clean: Served) -> dict[str, Any]:
    """Benign flags with 95 % intervals, and top-1 as answered and as served, on the test split."""
    found: dict[str, Any] = {"n": len(test)}
    for alpha in ALPHAS:
        which = flagged(pipeline, clean, alpha)
        found[f"alpha_{alpha:g}"] = {"flagged": float(which.mean()), "interval": interval(which, test.group)}
    right, served = clean.raw == test.y, clean.served == test.y
    return found | {
        "top1": float(right.mean()),
        "top1_served": float(served.mean()),
        "lost": int((right & ~served).sum()),
        "gained": int((served & ~right).sum()),
    }


def attacked(
    pipeline: Pipeline, network: Network, test: Split, attack: Attack, *, local: bool, generator: torch.Generator
) -> dict[str, Any]:
    """How many of the images fool the network; of those, how many are flagged and, of squares, answered rightly."""
    made = []
    for i in range(0, len(test), BATCH):
        x, y = to_tensor(test.x[i : i + BATCH]), torch.from_numpy(test.y[i : i + BATCH])
        made.append(to_uint8(attack(network, x, y, generator).numpy()))
    answers = serve(pipeline, np.concatenate(made))
    fooled = answers.raw != test.y
    found: dict[str, Any] = {"n": len(test), "fooled": int(fooled.sum())}
    for alpha in ALPHAS:
        which = flagged(pipeline, answers, alpha)[fooled]
        found[f"alpha_{alpha:g}"] = {
            "flagged": int(which.sum()),
            "interval": interval(which, test.group[fooled]),
        }
    if local:
        found["answered_rightly_after"] = int((answers.served == test.y)[fooled].sum())
    return found


def main(
    bundle: Annotated[Path, typer.Option(help="Bundle to measure.")] = Path("models/imagenet"),
    photos: Annotated[Path, typer.Option(help="Folder of photographs with labels.csv.")] = Path("photos"),
    n: Annotated[int, typer.Option(min=1, help="Test images that are attacked, of those answered rightly.")] = 60,
    steps: Annotated[int, typer.Option(min=1, help="Steps of PGD; squares get twice as many.")] = 20,
    only: Annotated[str, typer.Option(help="Measure only attacks whose title contains this.")] = "",
    seed: Annotated[int, typer.Option(help="Seed of the attacks.")] = 0,
    out: Annotated[Path | None, typer.Option(help="Write the figures to this JSON file.")] = None,
) -> None:
    """Measure a bundle for photographs as it is served."""
    console = Console(width=None if sys.stdout.isatty() else 160)
    loaded = load_bundle(bundle)
    data, _ = made_with(loaded)
    pipeline, network = open_pipeline(loaded), load_defence(loaded).network
    figures: dict[str, Any] = {"bundle": f"{loaded.name} {loaded.version}", "seed": seed, "steps": steps}
    figures["accuracy"] = accuracy(pipeline, network, photos, console)
    console.print_json(data=figures["accuracy"])
    clean = serve(pipeline, data.test.x)
    figures["benign"] = benign(pipeline, data.test, clean)
    console.print_json(data=figures["benign"])
    right = data.test.take(np.flatnonzero(clean.raw == data.test.y)[:n])
    figures["attacks"] = {}
    for title, attack in attacks(loaded.manifest.input.height, steps=steps).items():
        if only in title:
            start, generator = time.process_time(), seeded(seed, len(figures["attacks"]))
            row = attacked(pipeline, network, right, attack, local="PGD" not in title, generator=generator)
            figures["attacks"][title] = row | {"cpu_seconds": round(time.process_time() - start)}
            console.print(f"{title}: {row}", highlight=False)
    console.print(table(figures["attacks"]))
    if out is not None:
        record(out, "a bundle for photographs: accuracy, benign flags, attacks", figures)


def table(rows: dict[str, dict[str, Any]]) -> Table:
    """The attacks' outcomes."""
    shown = Table("attack", "images", "fooled", *(f"flagged at {a:.0%}" for a in ALPHAS), "right after", box=None)
    for title, row in rows.items():
        cells = [f"{row[f'alpha_{alpha:g}']['flagged']} of {row['fooled']}" for alpha in ALPHAS]
        after = row.get("answered_rightly_after")
        shown.add_row(
            title,
            str(row["n"]),
            str(row["fooled"]),
            *cells,
            "-" if after is None else f"{after} of {row['fooled']}",
        )
    return shown


if __name__ == "__main__":
    typer.run(main)
