"""A companion that sees averaged images, and what it is worth: `python -m studies.low_resolution`.

The images of a bundle are enlarged bicubically. Its answering network is trained on to see them whole; its companion
stays as it is and sees them averaged down to the side it was trained at. The answering network is then wrapped twice,
with that companion and without one, and an attacker who knows everything (`training.evaluate.harness.suite`) attacks
both as they are served. What is finished is kept, so that a stopped study resumes.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from PIL import Image
from rich.console import Console
from rich.table import Table

from benchmarks.record import record
from gateway.core.loading import load_bundle
from training.attacks.early import pgd_until_fooled
from training.bundling.assemble import Plan, Report, assemble
from training.bundling.calibrate import GUARD, SCREENED_BY
from training.bundling.networks import NETWORKS, ROLES, load_networks
from training.bundling.provenance import made_with
from training.bundling.samples import Effort
from training.commands.terminal import BundlePath, JsonPath, Threads, command, progress_bars, use_threads
from training.data.dataset import SPLITS, Dataset, Split
from training.defence.scores import default_scores
from training.evaluate.harness.bench import Bench
from training.evaluate.harness.shown import ranged
from training.evaluate.harness.store import Store
from training.evaluate.harness.suite import GUARD_STAGE, JOINT, carry_out, stages, stricter, union_of
from training.evaluate.harness.systems import ALONE, Systems
from training.imaging.pixels import to_tensor
from training.loop.runs import WEIGHTS, load_run
from training.loop.selection import accuracy
from training.loop.trainer import Trainer
from training.models import ModelSpec
from training.models.averaged import Averaged
from training.models.network import Network
from training.recipes.evaluation import ALPHAS, Evaluation
from training.recipes.training import DataSpec, MaskAugmentation, Recipe, Stage
from training.util.atomic import draft_of
from training.util.module_modes import frozen, seeded
from training.util.statistics import interval

NAME = "low-resolution-standard"
TESTED = 1000  # test images that false-positive rates are measured on
TRIED = (ALONE, "confident", GUARD_STAGE, JOINT, *(f"{JOINT}, {alpha:g}" for alpha in ALPHAS))


def enlarged(data: Dataset, side: int) -> Dataset:
    """`data` with all images bicubically resized to `side` pixels."""

    def resized(split: Split) -> Split:
        images = [Image.fromarray(each).resize((side, side), Image.Resampling.BICUBIC) for each in split.x]
        return dataclasses.replace(split, x=np.stack([np.asarray(each) for each in images]))

    train, select, calibrate, test = (resized(getattr(data, name)) for name in SPLITS)
    return dataclasses.replace(data, train=train, select=select, calibrate=calibrate, test=test)


def trained_on(
    network: Network, spec: ModelSpec, source: DataSpec, data: Dataset, runs: Path, report: Report, *, epochs: int
) -> tuple[Recipe, Network]:
    """The answering network of small images, trained on with larger ones; its stem halves them."""
    low = data.train.x.shape[1] // (spec.stem_stride * 2)
    stages_ = [
        Stage(name="standard", epochs=epochs, lr=0.05),
        Stage(name="mask", epochs=max(1, epochs // 2), lr=0.03, mask_augmentation=MaskAugmentation()),
    ]
    model = spec.model_copy(update={"stem_stride": spec.stem_stride * max(1, low // 16)})
    recipe = Recipe(name=NAME, data=source, model=model, stages=stages_, ema=0.99, init="gtsrb-standard")
    if not (runs / NAME / WEIGHTS).is_file():
        Trainer(recipe, data, runs / NAME, init=network).run(lambda event: report.training(NAME, event))
    return load_run(runs / NAME, data)


def wrapped(
    folder: Path, networks: dict[str, Network], training: dict[str, Any], data: Dataset, report: Report, *, seed: int
) -> Path:
    """The bundle of these networks in `folder`, made once."""
    alone = "companion" not in networks
    plan = Plan(
        name=folder.name,
        version="1.0.0",
        training=training,
        fused=default_scores(companion=not alone),
        guard=None if alone else GUARD,
        screened_by=() if alone else SCREENED_BY,
        samples=1,
        effort=Effort(4, 10, places=1, probe_steps=1),
        seed=seed,
    )
    if not folder.is_dir():
        with draft_of(folder) as draft:
            assemble(draft, plan, networks, data, report)
    return folder


def attacked(bench: Bench, *, eps: int, count: int) -> dict[str, Any]:
    """Shares of the first `count` test images answered wrong and not flagged, by alpha, with 95 % intervals."""
    systems = Systems(bench)
    plan = [stage for stage in [*stages(systems), *stricter(systems)] if stage.name in TRIED]
    rows = carry_out(bench, systems, plan, "low-resolution", eps=eps, count=count, steps=bench.settings.adaptive_steps)
    union, group = union_of(rows, systems.columns), bench.first(count).group
    names = {"answering": "network_fooled", **{f"served@{alpha:g}": f"alpha_{alpha:g}" for alpha in ALPHAS}}
    if ALONE in union:
        names[ALONE] = "companion_errs"
    return {
        name: {"share": float(union[column].mean()), "interval": interval(union[column], group)}
        for column, name in names.items()
    }


def clean(bench: Bench) -> dict[str, Any]:
    """Accuracy and flags on the clean test images, and how often the companion disagrees."""
    answers, truth = bench.clean, bench.data.test.y
    found: dict[str, Any] = {
        "n": len(truth),
        "accuracy": float((answers.raw == truth).mean()),
        "accuracy_served": float((answers.served == truth).mean()),
    }
    judge = bench.pipeline.judge
    for alpha in ALPHAS:
        found[f"flagged_{alpha:g}"] = float((answers.p_value <= judge.cutoff(alpha)).mean())
    if bench.defence.companion is not None:
        found["disagrees"] = float((answers.companion != answers.raw).mean())
        found["disagrees_on_calibrate"] = bench.bundle.manifest.companion_disagrees
        found["accuracy_companion"] = float((answers.companion == truth).mean())
    return found


def robust(network: Network, images: Split, *, eps: int, steps: int, seed: int) -> float:
    """Share of images that PGD within `eps` of 255 does not fool the network on."""
    with frozen(network):
        x, y = to_tensor(images.x), torch.from_numpy(images.y)
        fooled = pgd_until_fooled(network, x, y, eps=eps / 255, steps=steps, generator=seeded(seed))[1]
    return 1 - float(fooled.double().mean())


def table_of(rows: list[dict[str, Any]]) -> Table:
    """Who wins how often, with and without the companion."""
    table = Table(
        "eps", "bundle", "network fooled", *(f"unflagged, alpha {100 * a:g} %" for a in ALPHAS), "companion errs"
    )
    for row in rows:
        columns = ("network_fooled", *(f"alpha_{alpha:g}" for alpha in ALPHAS), "companion_errs")
        table.add_row(f"{row['eps']}/255", row["bundle"], *(_cell(row.get(name)) for name in columns))
    return table


def _cell(cell: dict[str, Any] | None) -> str:
    return "-" if cell is None else ranged(cell["share"], cell["interval"])


def main(
    bundle: BundlePath = Path("models/gtsrb"),
    side: Annotated[int, typer.Option(min=33, max=512, help="Side in pixels that images are enlarged to.")] = 64,
    epochs: Annotated[int, typer.Option(min=1, help="Epochs of the answering network on enlarged images.")] = 4,
    n: Annotated[int, typer.Option(min=1, help="Number of attacked test images.")] = 100,
    steps: Annotated[int, typer.Option(min=1)] = 50,
    targets: Annotated[int, typer.Option(min=1)] = 3,
    eps: Annotated[list[int] | None, typer.Option(help="Attack radii in 255ths; default: 4 and 8.")] = None,
    seed: int = 0,
    work: Annotated[Path, typer.Option(help="Folder of runs, bundles and measurements.")] = Path("runs/low-resolution"),
    json_path: JsonPath = None,
    threads: Threads = None,
) -> None:
    """Train, wrap with the companion and without it, attack both, and print who wins how often."""
    use_threads(threads)
    opened = load_bundle(bundle)
    small, _ = made_with(opened)
    manifest = opened.manifest
    models = {role: ModelSpec.model_validate(manifest.training[role]["model"]) for role in ROLES}
    shipped = load_networks(opened.path / NETWORKS, models, classes=len(small.classes), spec=manifest.input)
    low = manifest.input.height
    data = enlarged(small, side)
    source = DataSpec.model_validate(manifest.training["standard"]["data"])
    settings = Evaluation(
        seed=seed, steps=20, adaptive=n, adaptive_steps=steps, adaptive_targets=targets, adaptive_restarts=1
    )
    rows, figures = [], dict[str, Any]()
    with progress_bars() as bars:
        recipe, standard = trained_on(shipped["standard"], models["standard"], source, data, work, bars, epochs=epochs)
        order = np.random.default_rng(seed).permutation(len(data.test))[:TESTED]
        data = dataclasses.replace(data, test=data.test.take(order))
        companion = Averaged(shipped["companion"], low).eval()
        stated = manifest.training["companion"] | {"model": models["companion"].model_copy(update={"side": low})}
        training = {
            "standard": recipe.model_dump(mode="json"),
            "companion": stated | {"model": stated["model"].model_dump(mode="json")},
            "evaluation": settings.model_dump(mode="json"),
        }
        alone = {name: value for name, value in training.items() if name != "companion"}
        folders = {
            "with the companion": wrapped(
                work / "with", {"standard": standard, "companion": companion}, training, data, bars, seed=seed
            ),
            "without": wrapped(work / "without", {"standard": standard}, alone, data, bars, seed=seed),
        }
        benches = {
            title: Bench(load_bundle(folder), data, settings, Store(work / f"{folder.name}-work"), bars.step)
            for title, folder in folders.items()
        }
        figures["clean"] = {title: clean(bench) for title, bench in benches.items()}
        figures["companion_select"] = {
            "averaged": accuracy(companion, data.select, batch=256),
            "original": accuracy(shipped["companion"], small.select, batch=256),
        }
        some = data.test.take(np.arange(min(300, len(data.test))))
        for radius in eps or [8, 4]:
            figures[f"companion_pgd20_{radius}"] = robust(companion, some, eps=radius, steps=20, seed=seed)
            rows += [
                {"eps": radius, "bundle": title, "n": n, **attacked(bench, eps=radius, count=n)}
                for title, bench in benches.items()
            ]
    Console(width=140).print(table_of(rows))
    Console().print(figures)
    if json_path is not None:
        what = f"a companion that sees {low} of {side} pixels a side; wrong and not flagged, test split"
        effort = {"seed": seed, "n": n, "steps": steps, "targets": targets, "restarts": 1}
        record(json_path, what, {"bundle": f"{opened.name} {opened.version}", **effort, **figures, "rows": rows})


if __name__ == "__main__":
    typer.run(command(main))
