"""Analyse which neurons move under attack, and how faithful explanations are."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
import typer
from rich.table import Table

from training.analysis.contrast import Triples
from training.analysis.explain import explanation_report
from training.analysis.layers import layer_report, vulnerable_layers
from training.analysis.report import layer_page
from training.analysis.sample import sample
from training.analysis.sensitivity import sensitivity_study
from training.analysis.subjects import load_subject
from training.analysis.tables import explanation_table, layer_table
from training.bundling.networks import load_defence
from training.commands.figures import step_of, today, with_data, write_json
from training.commands.terminal import (
    BundlePath,
    JsonPath,
    Subject,
    Threads,
    command,
    console,
    progress_bars,
    use_threads,
)

app = typer.Typer(no_args_is_help=True, help=__doc__)
PROBE_IMAGES = 2000

Eps = Annotated[float, typer.Option(min=0, max=255, help="Linf radius of the attack in 255ths.")]
Part = Annotated[
    Literal["select", "test"],
    typer.Option("--split", help="Split to attack: test for reports, select for choosing layers."),
]


@app.command()
@command
def layers(
    subject: Subject = Path("models/gtsrb"),
    out: Annotated[Path, typer.Option(help="Folder for layers.json and layers.html.")] = Path("build/layers"),
    images: Annotated[int, typer.Option(min=8, help="Number of images to attack.")] = 300,
    split: Part = "test",
    eps: Eps = 8.0,
    steps: Annotated[int, typer.Option(min=1, help="Number of PGD steps.")] = 20,
    score: Annotated[
        Literal["logit", "probability"],
        typer.Option(help="Quantity that heat maps explain; NoiseCAM was published with probability."),
    ] = "logit",
    seed: int = 0,
    threads: Threads = None,
) -> None:
    """Show how every convolution responds to clean, attacked and noised images, as a table, JSON and heat maps."""
    use_threads(threads)
    chosen = load_subject(subject)
    data = chosen.data
    x, y, group = sample(getattr(data, split), images, seed=seed)
    fit = sample(data.train, PROBE_IMAGES, seed=seed)[:2]
    analysed: dict[str, tuple[dict[str, Any], Triples, torch.nn.Module]] = {}
    with progress_bars() as bars:
        for name, network in chosen.networks.items():
            report, found, _ = layer_report(
                network,
                x,
                y,
                group,
                fit=fit,
                classes=len(data.classes),
                eps=eps / 255,
                steps=steps,
                seed=seed,
                score=score,
                progress=partial(step_of, bars, name),
            )
            report["vulnerable"] = vulnerable_layers(report)
            analysed[name] = report, found, network
    out.mkdir(parents=True, exist_ok=True)
    date = today()
    facts = f"{chosen.name}, {len(x)} images of the {split} split, PGD-{steps} at {eps:g}/255, seed {seed}, {date}"
    write_json(
        out / "layers.json",
        {
            "subject": chosen.name,
            "date": date,
            "split": split,
            "networks": {name: r for name, (r, _, _) in analysed.items()},
        },
    )
    page = layer_page(f"Layer responses of {chosen.name}", analysed, classes=data.classes, facts=facts)
    (out / "layers.html").write_text(page, "utf-8")
    for name, (report, _, _) in analysed.items():
        console.print(layer_table(name, report))
    console.print(f"{facts}; {out / 'layers.html'}")


@app.command()
@command
def explanations(
    bundle: BundlePath = Path("models/gtsrb"),
    out: Annotated[Path, typer.Option(help="JSON file to write the figures to.")] = Path("build/explanations.json"),
    images: Annotated[int, typer.Option(min=8, help="Number of test images to explain.")] = 300,
    patched: Annotated[
        int, typer.Option(min=1, help="Number of these images that are also attacked by patches.")
    ] = 150,
    references: Annotated[bool, typer.Option(help="Compare with captum's integrated gradients and Grad-CAM.")] = True,
    seed: int = 0,
    threads: Threads = None,
) -> None:
    """Test a bundle's explanations by deletion, insertion, pointing, noise and randomised weights, beside others."""
    use_threads(threads)
    loaded, data = with_data(bundle)
    x, y, group = sample(data.test, images, seed=seed)
    with progress_bars() as bars:
        report = explanation_report(
            load_defence(loaded), x, y, group, patched=patched, seed=seed, references=references, progress=bars.step
        )
    write_json(out, {"subject": f"{loaded.name} {loaded.version}", "date": today(), "split": "test", **report})
    console.print(explanation_table(report))
    console.print(f"n = {report['n']} test images, {report['patch']['fooled']} fooled by a patch, seed {seed}; {out}")


@app.command()
@command
def sensitivity(
    subject: Subject = Path("models/gtsrb"),
    json_path: JsonPath = None,
    images: Annotated[int, typer.Option(min=8, help="Number of images to attack.")] = 300,
    split: Part = "test",
    eps: Eps = 8.0,
    steps: Annotated[int, typer.Option(min=1, help="Number of PGD steps.")] = 20,
    layers: Annotated[
        Literal["taps", "all"], typer.Option(help="Layers to measure: tapped ones, or every convolution.")
    ] = "taps",
    top: Annotated[
        int, typer.Option(min=1, help="Number of most sensitive neurons listed per layer in the JSON.")
    ] = 10,
    share: Annotated[float, typer.Option(min=0, max=1, help="Share of a tapped layer's neurons that is masked.")] = 0.1,
    draws: Annotated[int, typer.Option(min=1, help="Number of random sets of neurons masked for comparison.")] = 10,
    seed: int = 0,
    threads: Threads = None,
) -> None:
    """Measure neuron sensitivity by layer under PGD and Gaussian noise of equal norm, and the effect of masking.

    The neurons to mask are ranked on images of the select split.
    """
    use_threads(threads)
    chosen = load_subject(subject)
    x, y, group = sample(getattr(chosen.data, split), images, seed=seed)
    ranked_on = sample(chosen.data.select, images, seed=seed + 1)[:2]
    found: dict[str, dict[str, Any]] = {}
    with progress_bars() as bars:
        for count, (name, network) in enumerate(chosen.networks.items()):
            bars.step("neuron sensitivity", count, len(chosen.networks))
            found[name] = sensitivity_study(
                network,
                x,
                y,
                ranked_on,
                group=group,
                eps=eps / 255,
                steps=steps,
                layers=layers,
                top=top,
                share=share,
                draws=draws,
                seed=seed,
            )
    facts = {
        "subject": chosen.name,
        "date": today(),
        "split": split,
        "n": len(x),
        "groups": len(np.unique(group)),
        "attack": f"PGD-{steps}",
        "eps": eps,
        "seed": seed,
    }
    for name, study in found.items():
        console.print(_sensitivity_table(name, study["layers"]))
        console.print(_masking_table(name, study["masking"]))
    console.print(f"{chosen.name}, {len(x)} images of the {split} split, PGD-{steps} at {eps:g}/255, seed {seed}")
    if json_path:
        write_json(json_path, facts | {"networks": found})


def _sensitivity_table(name: str, rows: list[dict[str, Any]]) -> Table:
    table = Table("layer", "neurons", "absolute", "noise", "relative", "noise", "ratio", title=name)
    for row in rows:
        plain = [f"{row[key]:.3g}" for key in ("absolute", "absolute_gaussian")]
        held = [
            f"{row[key]:.3f} [{row[f'{key}_interval'][0]:.3f}, {row[f'{key}_interval'][1]:.3f}]"
            for key in ("relative", "relative_gaussian", "relative_ratio")
        ]
        table.add_row(row["layer"], str(row["neurons"]), *plain, *held)
    return table


def _masking_table(name: str, study: dict[str, Any]) -> Table:
    table = Table("masked in", "neurons", "clean", "random", "attacked", "random", title=f"{name}: accuracy")
    table.add_row("none", "", f"{study['clean']:.3f}", "", f"{study['attacked']:.3f}", "")
    for row in study["layers"]:
        cells = []
        for kind in ("clean", "attacked"):
            low, high = row[kind]["random_range"]
            cells += [f"{row[kind]['sensitive']:.3f}", f"{row[kind]['random']:.3f} ({low:.3f} to {high:.3f})"]
        table.add_row(row["layer"], f"{row['masked']}/{row['neurons']}", *cells)
    return table
