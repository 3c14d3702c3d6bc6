"""What J-SIGR and neuron stabilising add to adversarial training: `python -m studies.ablation`.

Every arm starts from the same adversarially trained base and is trained on for the same number of epochs, with its
terms and without any; every training seed has its own base. Runs and measurements are kept under the run folder, so
that a stopped study resumes; missing results are left out of the table and reported.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from pydantic import BaseModel, ConfigDict, Field
from rich.console import Console
from rich.table import Table
from torch import nn

from benchmarks.record import record
from gateway.atomic import replacing, write_text
from training.analysis.sensitivity import sensitivity_report
from training.attacks.autoattack import autoattack
from training.attacks.coarse import searched
from training.attacks.early import pgd_until_fooled
from training.attacks.fgsm import momentum_fgsm
from training.bundling.provenance import load_data
from training.commands.terminal import JsonPath, Threads, command, use_threads
from training.data.dataset import Dataset
from training.imaging.pixels import to_tensor
from training.loop.selection import accuracy
from training.loop.teacher import teacher_maps
from training.loop.train import train
from training.losses.jacobian import jacobian_norm
from training.losses.perturbation_saliency import important_mask
from training.losses.selective import off_mask_share
from training.losses.settings import Terms
from training.models.network import Network
from training.recipes.training import Recipe, Stage, load_recipe, read_yaml, validate
from training.util.module_modes import frozen, seeded

STUDY = Path("training/configs/ablation/study.yaml")
RADII, FAR = (4, 8), (8, 16)
FIGURES = {
    "clean": "clean",
    "pgd_4": "PGD-50 4/255",
    "pgd_8": "PGD-50 8/255",
    "autoattack_4": "AutoAttack 4/255",
    "autoattack_8": "AutoAttack 8/255",
    "transfer_8": "MI-FGSM 8/255",
    "transfer_16": "MI-FGSM 16/255",
    "jacobian": "median 1/2 ||J||^2",
    "off_mask": "off-mask share",
    "sensitivity": "relative sensitivity",
}
SHARES = {"clean", *(f"{name}_{e}" for name in ("pgd", "autoattack") for e in RADII), *(f"transfer_{e}" for e in FAR)}
console = Console()


class Study(BaseModel):
    """The YAML file: `base` and `surrogates` are recipes, `arm` is the stage that follows with the terms of `arms`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    seeds: list[int] = Field(min_length=1)
    teacher: str
    base: Recipe
    arm: Stage
    arms: dict[str, Terms]
    surrogates: list[Recipe]
    n: int = Field(1000, ge=1, description="test images of attacks and gradients; clean and transfer take all")

    def base_of(self, seed: int) -> Recipe:
        return self.base.model_copy(update={"name": f"{self.base.name}-s{seed}", "seed": seed})

    def arm_of(self, arm: str, seed: int, teacher: str) -> Recipe:
        stage = self.arm.model_copy(update={"terms": self.arms[arm]})
        changes = {"name": f"ablation-{arm}-s{seed}", "stages": [stage], "init": self.base_of(seed).name}
        return self.base_of(seed).model_copy(update=changes | ({"teacher": teacher} if self.arms[arm].grid else {}))


class Measures:
    """Figures of finished networks, each written down as soon as it is found."""

    def __init__(self, study: Study, data: Dataset, folder: Path, teacher: nn.Module, sources: list[nn.Module]) -> None:
        self.study, self.data, self.folder, self.teacher, self.sources = study, data, folder, teacher, sources
        index = np.sort(np.random.default_rng(0).permutation(len(data.test))[: study.n])
        self.some = data.test.take(index)
        self.x, self.y = to_tensor(self.some.x), torch.from_numpy(self.some.y)

    def of(self, name: str, network: Network, *, attack: bool) -> dict[str, Any]:
        """Every figure of the run `name`; AutoAttack's only where they were found before, or if `attack`."""
        units: dict[str, Callable[[], float | dict[str, float]]] = {
            "clean": lambda: accuracy(network, self.data.test),
            **{f"transfer_{eps}": partial(self._transfer, network, eps) for eps in FAR},
            **{f"pgd_{eps}": partial(self._pgd, network, eps) for eps in RADII},
            "jacobian": lambda: self._jacobian(network),
            "off_mask": lambda: self._off_mask(network),
            "sensitivity": lambda: self._sensitivity(network),
            **{f"autoattack_{eps}": partial(self._autoattack, name, network, eps) for eps in RADII},
        }
        found = {}
        for unit, measure in units.items():
            path = self.folder / name / f"{unit}.json"
            if not path.is_file():
                if unit.startswith("autoattack") and not attack:
                    continue
                path.parent.mkdir(parents=True, exist_ok=True)
                write_text(path, json.dumps(measure()))
            found[unit] = json.loads(path.read_text("utf-8"))
            console.print(f"{name}: {unit} {found[unit]}")
        return found

    def _transfer(self, network: Network, eps: int) -> float:
        path = self.folder / f"transfer-{eps}.npz"
        if not path.is_file():
            x, y = to_tensor(self.data.test.x), torch.from_numpy(self.data.test.y)
            sources = [searched(source) for source in self.sources]
            parts = [
                momentum_fgsm(sources, a, b, eps=eps / 255) for a, b in zip(x.split(256), y.split(256), strict=True)
            ]
            path.parent.mkdir(parents=True, exist_ok=True)
            images = (torch.cat(parts) * 255).round().byte().permute(0, 2, 3, 1).numpy()
            with replacing(path) as draft, draft.open("wb") as file:
                np.savez_compressed(file, x=images)
        with np.load(path, allow_pickle=False) as file:
            return accuracy(network, type(self.some)(file["x"], self.data.test.y, self.data.test.group))

    def _pgd(self, network: Network, eps: int) -> float:
        with frozen(network):
            right = network(self.x).argmax(1) == self.y
            _, fooled = pgd_until_fooled(
                searched(network), self.x[right], self.y[right], eps=eps / 255, steps=50, generator=seeded(0, eps)
            )
        return float((~fooled).sum() / len(self.y))

    def _autoattack(self, name: str, network: Network, eps: int) -> float:
        with frozen(network):
            found = autoattack(
                searched(network),
                self.x,
                self.y,
                eps=eps / 255,
                batch=250,
                folder=self.folder / name / f"autoattack-{eps}",
            )
        return float(found.robust.float().mean())

    def _jacobian(self, network: Network) -> float:
        with frozen(network):
            return float(torch.cat([jacobian_norm(network, part) for part in self.x.split(250)]).median())

    def _off_mask(self, network: Network) -> float:
        grid = 6
        maps = teacher_maps(self.teacher, self.some.x, grid=grid, precision="fp32", cache=self.folder)
        important = important_mask(maps, size=(self.x.shape[2], self.x.shape[3]), mass=0.5)
        with frozen(network):
            return float(off_mask_share(network, self.x, self.y, important).mean())

    def _sensitivity(self, network: Network) -> dict[str, float]:
        """By layer, under PGD-20 at 8/255."""
        return {row["layer"]: row["relative"] for row in sensitivity_report(network, self.x, self.y, eps=8 / 255)}


def main(
    study: Annotated[Path, typer.Option(help="The study's YAML file.")] = STUDY,
    runs: Annotated[Path, typer.Option(help="Folder of training runs and of measurements.")] = Path("runs"),
    attack: Annotated[bool, typer.Option(help="Run AutoAttack too (most of the time of a study).")] = True,  # noqa: FBT002
    json_path: JsonPath = None,
    threads: Threads = None,
) -> None:
    """Train (or find) every arm of the study, measure it, and print means and spreads over the training seeds."""
    use_threads(threads)
    plan = validate(Study, read_yaml(study), study)
    data = load_data(plan.base)
    run = partial(train, data=data, runs=runs, report=_tell)
    teaching = load_recipe(study.parent / plan.teacher)
    teacher = run(teaching)
    measures = Measures(plan, data, runs / "ablation", teacher, [run(recipe) for recipe in plan.surrogates])
    found: dict[str, list[dict[str, Any]]] = {arm: [] for arm in plan.arms}
    trained = [(seed, arm, _arm(run, plan, arm, seed, teaching.name)) for seed in plan.seeds for arm in plan.arms]
    passes = (False, True) if attack else (False,)
    for attacking in passes:
        found = {arm: [] for arm in plan.arms}
        for seed, arm, network in trained:
            found[arm].append({"seed": seed} | measures.of(f"{arm}-s{seed}", network, attack=attacking))
    table = {arm: summary(rows) for arm, rows in found.items()}
    console.print(_table(table))
    if json_path:
        record(
            json_path, "ablation", {"study": plan.model_dump(mode="json"), "n": plan.n, "summary": table, "runs": found}
        )


def _arm(run: Callable[..., Network], plan: Study, arm: str, seed: int, teacher: str) -> Network:
    run(plan.base_of(seed))
    return run(plan.arm_of(arm, seed, teacher))


def summary(rows: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Mean, sample standard deviation and number of seeds of each figure; sensitivity is the mean over layers."""
    out = {}
    for figure in FIGURES:
        values = [_scalar(row[figure]) for row in rows if figure in row]
        if values:
            spread = statistics.stdev(values) if len(values) > 1 else float("nan")
            out[figure] = {"mean": statistics.fmean(values), "sd": spread, "seeds": len(values)}
    layers = {layer for row in rows for layer in row.get("sensitivity", {})}
    for layer in sorted(layers):
        values = [row["sensitivity"][layer] for row in rows if "sensitivity" in row]
        out[f"sensitivity_{layer}"] = {"mean": statistics.fmean(values), "seeds": len(values)}
    return out


def _scalar(value: float | dict[str, float]) -> float:
    return statistics.fmean(value.values()) if isinstance(value, dict) else value


def _table(table: dict[str, dict[str, dict[str, float]]]) -> Table:
    shown = Table("figure", *table)
    for figure, label in FIGURES.items():
        shown.add_row(label, *(_cell(figure, row.get(figure)) for row in table.values()))
    return shown


def _cell(figure: str, found: dict[str, float] | None) -> str:
    if found is None:
        return "-"
    scale, digits = (100, 1) if figure in SHARES else (1, 0 if figure == "jacobian" else 3)
    return f"{found['mean'] * scale:.{digits}f} ± {found['sd'] * scale:.{digits}f} ({found['seeds']:.0f})"


def _tell(run: str, event: dict[str, Any]) -> None:
    if "epoch" in event:
        console.print(f"{run}: epoch {event['epoch']}/{event['epochs']}, select {event['select_clean']:.4f}")


if __name__ == "__main__":
    typer.run(command(main))
