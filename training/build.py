"""`palisade build`: from data to a bundle that the gateway serves, in one command.

Train the answering network and its companion (finished runs are taken as they are), fit benign constants, export,
calibrate through the served path, write samples, measure, and only then put the folder in place: a bundle is whole or
not there.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Protocol

import numpy as np
import onnx
import onnxruntime
import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from gateway.bundle import (
    MANIFEST,
    Bundle,
    GraphSpec,
    Guard,
    InputSpec,
    Manifest,
    MonitoredLayer,
    Name,
    Part,
    Policy,
    Resize,
    Version,
    graphs_sha256,
    hash_files,
    load_bundle,
    read_manifest,
    write_manifest,
)
from gateway.engine import Engine
from training.attacks.pgd import pgd
from training.calibrate import ALPHAS, GUARD, benign_scores, calibrate
from training.data import Dataset, load_dataset
from training.defence.constants import fit_constants, sensitive_neurons
from training.defence.graph import SCORES, SCREEN_SCORES, DefenceGraph, DefenceOutputs
from training.drafts import draft_of
from training.errors import RecipeError, TrainingError
from training.evaluate.card import Evaluation, evaluate, write_card
from training.evaluate.samples import write_samples
from training.export.blocked import keep_blocked
from training.export.onnx_file import EXAMPLE_BATCH, export_module
from training.export.parts import graph_specs, split_parts, write_parts
from training.models.network import Network
from training.modes import frozen, seeded
from training.networks import NETWORKS, ROLES, defence_graph, load_networks, save_networks
from training.pixels import to_tensor
from training.recipe import Recipe, load_recipe, read_yaml, validate
from training.runs import load_run
from training.trainer import Trainer


class Report(Protocol):
    """Progress: of training (a dict for each batch and epoch) and of everything else (name, done, total)."""

    def training(self, run: str, event: dict[str, Any]) -> None: ...

    def step(self, name: str, done: int, total: int) -> None: ...


class Silent:
    """A report for library use."""

    def training(self, run: str, event: dict[str, Any]) -> None: ...

    def step(self, name: str, done: int, total: int) -> None: ...


class BundleRecipe(BaseModel):
    """What a bundle is made of; `standard` and `companion` are recipe files beside this one."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Name
    version: Version
    description: str = ""
    standard: str
    companion: str
    fused: list[str] = Field(default=list(SCORES), min_length=1, description="scores that Fisher's statistic combines")
    guard: Guard | None = Field(GUARD, description="the score whose objection no other outweighs; null: none")
    screened_by: list[str] = Field(["companion_margin"], description="scores by which the cascade screens; []: none")
    policy: Policy = Policy()
    samples: int = Field(4, ge=1, le=50, description="of each kind: clean, attacked, patched")
    evaluation: Evaluation = Evaluation()


def load_bundle_recipe(path: Path) -> BundleRecipe:
    """Read and validate; `RecipeError` names the key that is wrong."""
    recipe = validate(BundleRecipe, read_yaml(path), path)
    named = {"fused": (recipe.fused, SCORES), "screened_by": (recipe.screened_by, SCREEN_SCORES)}
    if recipe.guard:
        named["guard"] = ([recipe.guard.score], SCORES)
    for key, (names, known) in named.items():
        if unknown := set(names) - set(known):
            raise RecipeError(f"{path}: {key}: unknown scores {sorted(unknown)}; there are {', '.join(known)}")
    for name in ("alpha", "gate_alpha"):
        if getattr(recipe.policy, name) not in ALPHAS:
            calibrated = ", ".join(f"{alpha:g}" for alpha in ALPHAS)
            raise RecipeError(f"{path}: policy.{name}: no cutoff is calibrated for it; there are {calibrated}")
    return recipe


def build(
    config: Path,
    out: Path,
    *,
    runs: Path,
    networks: Path | None = None,
    card: bool = True,
    report: Report | None = None,
    force: bool = False,
) -> Bundle:
    """Build the bundle that `config` describes into `out` and return it as the gateway loads it.

    `networks` is a bundle's `networks.safetensors`: its networks are taken and nothing is trained. Without `card` the
    attacks are left to `palisade evaluate`. Raises `TrainingError` (its subclasses name the cause); `out` is replaced
    only by a finished bundle, and only if `force`.
    """
    report = report or Silent()
    recipe = load_bundle_recipe(config)
    if out.exists() and not force:
        raise TrainingError(f"{out} exists; choose another --out or pass --force")
    if out.exists() and not (out / MANIFEST).is_file():
        raise TrainingError(f"{out} is not a bundle and would be lost; --force replaces bundles alone")
    recipes = {role: load_recipe(config.parent / getattr(recipe, role)) for role in ROLES}
    if recipes["standard"].data != recipes["companion"].data:
        raise RecipeError(f"{config}: answering network and companion must be trained on the same data and splits")
    data = load_data(recipes["standard"])
    if networks is not None:
        models = {role: recipes[role].model for role in ROLES}
        made = load_networks(networks, models, classes=len(data.classes), spec=input_spec(data))
    else:
        made = {role: train(recipes[role], data, runs=runs, report=report.training) for role in ROLES}
    with draft_of(out) as draft:
        _assemble(draft, recipe, recipes, made, data, report)
        if card:
            write_card(draft, evaluate(load_bundle(draft), data, recipe.evaluation, report.step))
            write_manifest(draft, read_manifest(draft))
    return load_bundle(out)


def load_data(recipe: Recipe) -> Dataset:
    """The data set that a recipe names, split as it says."""
    spec = recipe.data
    return load_dataset(
        spec.source, seed=spec.split_seed, fractions=spec.fractions, classes=spec.classes, per_class=spec.per_class
    )


def train(
    recipe: Recipe,
    data: Dataset,
    *,
    runs: Path,
    report: Callable[[str, dict[str, Any]], None] = lambda _run, _event: None,
) -> Network:
    """The finished network of `recipe` in `runs`/<name>: trained now, resumed, or loaded if the run is finished."""
    folder = runs / recipe.name
    if (folder / "weights.safetensors").is_file():
        done, network = load_run(folder, data)
        if done != recipe:
            raise TrainingError(
                f"{folder} holds a run of another version of this recipe; delete it or use another --runs"
            )
        return network

    def named(role: str) -> Network | None:
        name = getattr(recipe, role)
        return load_run(runs / name, data)[1] if name else None

    trainer = Trainer(recipe, data, folder, teacher=named("teacher"), init=named("init"))
    return trainer.run(lambda event: report(recipe.name, event))


def _assemble(
    folder: Path,
    recipe: BundleRecipe,
    recipes: dict[str, Recipe],
    networks: dict[str, Network],
    data: Dataset,
    report: Report,
) -> None:
    standard, companion = networks["standard"], networks["companion"]
    report.step("fitting benign constants", 0, 1)
    constants = fit_constants(standard, data.train, data.select, classes=len(data.classes))
    save_networks(folder / NETWORKS, standard=standard, companion=companion, constants=constants)
    spec = input_spec(data)
    defence = defence_graph(networks, constants, side=spec.height)
    report.step("exporting the defence graph", 0, 1)
    graphs = export_defence(defence, folder, channels=spec.channels, height=spec.height, width=spec.width)
    engine = Engine(folder, graphs, spec, provider="cpu")
    scores = benign_scores(
        engine, spec, data, lambda name, done, total: report.step(f"calibrating: {name}", done, total)
    )
    calibration = calibrate(
        scores, names=SCORES, fused=recipe.fused, provider="cpu", out=folder,
        graphs_sha256=graphs_sha256(hash_files(folder)), guard=recipe.guard, screened_by=recipe.screened_by,
    )  # fmt: skip
    sensitive = _sensitive(standard, data)
    manifest = Manifest(
        name=recipe.name,
        version=recipe.version,
        description=recipe.description,
        created=datetime.now(UTC).date(),
        classes=data.classes,
        input=spec,
        graphs=graphs,
        scores=list(SCORES),
        screen_scores=list(SCREEN_SCORES),
        layers=[
            MonitoredLayer(name=name, channels=count, sensitive=sensitive[name])
            for name, count in standard.tap_channels.items()
        ],
        companion=True,
        calibrations=[calibration],
        policy=recipe.policy,
        training={role: recipes[role].model_dump(mode="json") for role in recipes}
        | {"evaluation": recipe.evaluation.model_dump(mode="json")},
        data=data.describe(),
        software={
            "python": platform.python_version(),
            "torch": torch.__version__,
            "onnx": onnx.__version__,
            "onnxruntime": onnxruntime.__version__,
            "numpy": np.__version__,
        },
        files=hash_files(folder),
    )
    write_manifest(folder, manifest)
    bundle = load_bundle(folder)
    report.step("samples", 0, 1)
    write_samples(bundle, data, seed=recipe.evaluation.seed, count=recipe.samples)
    write_manifest(folder, manifest)


def input_spec(data: Dataset) -> InputSpec:
    """The images that a network trained on `data` takes."""
    height, width, channels = data.train.x.shape[1:]
    return InputSpec(height=height, width=width, channels=channels, resize=Resize())


def export_defence(
    defence: DefenceGraph, folder: Path, *, channels: int, height: int, width: int
) -> dict[Part, GraphSpec]:
    """Write the graph's parts and their weights into `folder`; the parts as the manifest describes them."""
    generator = seeded(0)
    pixels = torch.rand(EXAMPLE_BATCH, channels, height, width, generator=generator)
    mask = (torch.rand(EXAMPLE_BATCH, height, width, generator=generator) < 0.1).float()
    with TemporaryDirectory() as temporary:
        model = export_module(
            defence, Path(temporary) / "whole.onnx", inputs={"pixels": pixels, "mask": mask},
            outputs=list(DefenceOutputs._fields),
        )  # fmt: skip
    keep_blocked(model)
    parts = split_parts(model)
    write_parts(parts, folder)
    return graph_specs(parts)


def _sensitive(network: Network, data: Dataset, pairs: int = 256) -> dict[str, list[int]]:
    """Sensitive neurons from clean/adversarial pairs of the select split (PGD-10, 8/255)."""
    x, y = to_tensor(data.select.x[:pairs]), torch.from_numpy(data.select.y[:pairs])
    with frozen(network):
        adversarial = pgd(network, x, y, eps=8 / 255, steps=10, generator=seeded(0, 2))
    return sensitive_neurons(network, x, adversarial)


def recipe_of(bundle: Bundle) -> tuple[Recipe, Evaluation]:
    """The data recipe and evaluation settings that a bundle was made with, from its manifest."""
    training = bundle.manifest.training
    try:
        return Recipe.model_validate(training["standard"]), Evaluation.model_validate(training["evaluation"])
    except (KeyError, ValidationError) as error:
        reason = str(error).splitlines()[0]
        raise TrainingError(f"{bundle.path}: the manifest does not say how it was made: {reason}") from None


def same_data(bundle: Bundle, data: Dataset) -> None:
    """`TrainingError` unless `data` are the very arrays that the bundle's manifest describes."""
    told, found = json.loads(json.dumps(bundle.manifest.data)), data.describe()
    for split in ("train", "select", "calibrate", "test"):
        if told.get(split) != found[split]:
            raise TrainingError(
                f"{data.name}: the {split} split is not the one that {bundle.name} {bundle.version} was made with"
            )
