"""`palisade analyse`: what moves inside networks under attack, and how good their explanations are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.table import Table

from gateway.bundle import load_bundle
from training.analysis.sensitivity import sensitivity_report
from training.build import load_data, recipe_of
from training.networks import load_defence
from training.pixels import to_tensor
from training.terminal import BundlePath, command, console

app = typer.Typer(no_args_is_help=True, help=__doc__)


@app.command()
@command
def sensitivity(
    bundle: BundlePath = Path("models/gtsrb"),
    images: Annotated[int, typer.Option(min=8, help="Select images to attack.")] = 256,
    eps: Annotated[float, typer.Option(min=0, max=255, help="Linf radius, of 255.")] = 8.0,
    seed: int = 0,
    out: Annotated[Path | None, typer.Option(help="Write the rows as JSON, too.")] = None,
) -> None:
    """Neuron sensitivity by layer of a bundle's networks, under PGD and under Gaussian noise of equal norm."""
    loaded = load_bundle(bundle)
    recipe, _ = recipe_of(loaded)
    data = load_data(recipe)
    x, y = to_tensor(data.select.x[:images]), torch.from_numpy(data.select.y[:images])
    defence, report = load_defence(loaded), {}
    table = Table("network", "layer", "neurons", "absolute", "relative", "relative, Gaussian", "ratio")
    for role, network in (("answering", defence.network), ("companion", defence.companion)):
        report[role] = sensitivity_report(network, x, y, eps=eps / 255, seed=seed)
        for row in report[role]:
            table.add_row(
                role, row["layer"], str(row["neurons"]), f"{row['absolute']:.4f}", f"{row['relative']:.3f}",
                f"{row['relative_gaussian']:.3f}", f"{row['relative_ratio']:.2f}",
            )  # fmt: skip
    console.print(table)
    console.print(f"n = {len(x)} images of the select split, PGD-20 at {eps:g}/255, seed {seed}")
    if out:
        out.write_text(json.dumps({"n": len(x), "eps": eps, "seed": seed, **report}, indent=1) + "\n", "utf-8")
