"""From networks and data to a bundle's folder: constants, export, calibration, manifest, samples."""

from __future__ import annotations

import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import onnx
import onnxruntime
import torch
from torch import Tensor, nn

from gateway.core.engine import Engine
from gateway.core.loading import hash_files, load_bundle, write_manifest
from gateway.core.manifest import (
    BUCKETS,
    MANIFEST,
    GraphSpec,
    Guard,
    InputSpec,
    Manifest,
    MonitoredLayer,
    Part,
    Policy,
    graphs_sha256,
)
from gateway.core.preprocessing import Normalisation, Resize
from training.attacks.pgd import pgd
from training.bundling.calibrate import Benign, benign_scores, calibrate
from training.bundling.kept import Kept, key_of
from training.bundling.networks import NETWORKS, SOURCE, defence_graph, load_constants, save_networks
from training.bundling.samples import SAMPLED, TITLES, Effort, attacked_images, write_samples
from training.bundling.trial import attack_samples, check_reach
from training.data.dataset import Dataset
from training.defence.constants import Constants, batch_of, fit_constants, sensitive_neurons
from training.defence.graph import DefenceGraph, DefenceOutputs
from training.defence.localisers import LOCALISER
from training.defence.scores import chosen
from training.errors import TrainingError
from training.export.blocked import keep_blocked
from training.export.onnx_file import EXAMPLE_BATCH, export_graph
from training.export.parts import graph_specs, split_parts, write_parts
from training.imaging.pixels import to_tensor
from training.models.network import Network, Normalise
from training.served.answers import open_pipeline
from training.util.module_modes import frozen, seeded
from training.util.registry import Titled
from training.util.signatures import Progress, silent


class Report(Protocol):
    """Progress: of training (a dict for each batch and epoch) and of everything else (name, done, total)."""

    def training(self, run: str, event: dict[str, Any]) -> None: ...

    def step(self, name: str, done: int, total: int) -> None: ...


class Silent:
    """A report for library use."""

    def training(self, run: str, event: dict[str, Any]) -> None: ...

    def step(self, name: str, done: int, total: int) -> None: ...


@dataclass(frozen=True)
class Plan:
    """What a bundle is to be, beside its networks and data; `training` is the manifest's account of how it was made.

    `samples` of each kind come of test images that are attacked with `effort`. With `trial` more attacks are made on
    them, and the manifest states what was flagged. `normalise` is what the answering network does to
    pixels, if it is more than its buffers state. `left_out` are default scores that the data are too few for.
    """

    name: str
    version: str
    training: dict[str, Any]
    fused: Sequence[str]
    description: str = ""
    localiser: str = LOCALISER
    guard: Guard | None = None
    screened_by: Sequence[str] = ()
    trusted: float = 1.0  # disagreement of the companion on clean images beyond which it neither guards nor screens
    policy: Policy = Policy()
    benign: Benign = Benign()
    resize: Resize = Resize()
    normalise: Normalisation | None = None
    buckets: Sequence[int] = BUCKETS
    samples: int = 4
    effort: Effort = Effort()
    trial: bool = False
    left_out: Sequence[str] = ()
    seed: int = 0
    keep: Callable[[Path], None] = lambda _: None  # writes what the architecture is made of into a folder

    def scores(self, *, companion: bool) -> tuple[str, ...]:
        """The graph's columns: the default scores, what is fused, what guards and what screens."""
        guard = [] if self.guard is None else [self.guard.score]
        asked = chosen([*self.fused, *guard, *self.screened_by], companion=companion)
        return tuple(name for name in asked if name not in self.left_out)


def assemble(
    folder: Path,
    plan: Plan,
    networks: Mapping[str, Network],
    data: Dataset,
    report: Report,
    *,
    kept_in: Path | None = None,
) -> None:
    """Write the bundle of `networks` by role (a companion may be missing) into the empty `folder`.

    What it is calibrated on and what its samples are come from `data`. With `kept_in`, a folder, a run that was stopped
    goes on with the graph and the scores that it left there (`training.bundling.kept`). Raises `TrainingError`.
    """
    standard, companion = networks["standard"], networks.get("companion")
    scores = plan.scores(companion=companion is not None)
    spec = input_spec(data, plan.resize, plan.normalise or normalisation_of(standard))
    settings = {
        "scores": scores,
        "localiser": plan.localiser,
        "guard": plan.guard is not None,
        "benign": plan.benign.model_dump(mode="json"),
        "seed": plan.seed,
        "input": spec.model_dump(mode="json"),
        "buckets": list(plan.buckets),
    }
    kept = None if kept_in is None else Kept(kept_in, key_of(networks, data, settings))

    def defence_of(constants: Constants) -> DefenceGraph:
        return defence_graph(networks, constants, side=spec.height, scores=scores, localiser=plan.localiser)

    def export() -> dict[Part, GraphSpec]:
        constants = fit_constants(
            standard,
            data.train,
            data.select,
            classes=len(data.classes),
            scores=scores,
            progress=lambda done, total: report.step("fitting benign constants", done, total),
        )
        save_networks(folder / NETWORKS, standard=standard, companion=companion, constants=constants)
        plan.keep(folder / SOURCE)
        return export_defence(
            defence_of(constants),
            folder,
            channels=spec.channels,
            height=spec.height,
            width=spec.width,
            progress=lambda done, total: report.step("exporting the defence graph", done, total),
        )

    graphs = export() if kept is None else kept.graph(folder, export)
    defence = defence_of(load_constants(folder / NETWORKS))
    engine = Engine(folder, graphs, spec, provider="cpu", buckets=plan.buckets)
    measured = benign_scores(
        engine,
        spec,
        data,
        lambda name, done, total: report.step(f"calibrating: {name}", done, total),
        benign=plan.benign,
        guarded=plan.guard is not None,
        seed=plan.seed,
        kept=kept,
    )
    plan = without_guard(plan, measured.disagreement, len(measured.groups))
    names = defence.score_names
    calibration = calibrate(
        measured,
        names=names,
        fused=plan.fused,
        provider="cpu",
        out=folder,
        graphs_sha256=graphs_sha256(hash_files(folder)),
        guard=plan.guard,
        screened_by=plan.screened_by,
    )
    training = dict(plan.training)
    if notes := [*plan.training.get("notes", []), *check_reach(calibration, plan.policy)]:
        training["notes"] = notes
    sensitive = _sensitive(standard, data)
    described: list[Titled] = [*defence.scores, defence.localiser]
    manifest = Manifest(
        name=plan.name,
        version=plan.version,
        description=plan.description,
        created=datetime.now(UTC).date(),
        classes=data.classes,
        input=spec,
        graphs=graphs,
        buckets=list(plan.buckets),
        scores=list(names),
        screen_scores=list(defence.screen_names),
        layer_scores=[score.name for score in defence.scores if score.about_layers],
        localiser=defence.localiser.name,
        titles={each.name: each.title for each in described},
        meanings={each.name: each.meaning for each in described},
        layers=[
            MonitoredLayer(name=name, channels=count, sensitive=sensitive[name])
            for name, count in standard.tap_channels.items()
        ],
        companion=companion is not None,
        companion_disagrees=measured.disagreement,
        calibrations=[calibration],
        policy=plan.policy,
        training=training,
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
    pipeline, kinds = open_pipeline(load_bundle(folder)), tuple(TITLES) if plan.trial else SAMPLED
    made = attacked_images(defence.network, data.test, kinds, plan.effort, seed=plan.seed, progress=report.step)
    write_samples(folder / "samples", pipeline, data.test, made, classes=data.classes, count=plan.samples)
    if plan.trial:
        training["trial"] = attack_samples(pipeline, data.test, made, report.step).model_dump(mode="json")
    write_manifest(folder, manifest.model_copy(update={"training": training}))
    if kept is not None:
        kept.drop()


def without_guard(plan: Plan, disagrees: float | None, n: int) -> Plan:
    """`plan` with neither guard nor screen, and a note that says so, where the companion disagrees too often.

    A guard that may flag few clean images then objects only where its doubt is rare, which no attacker has to avoid.
    """
    if disagrees is None or disagrees <= plan.trusted:
        return plan
    note = (
        f"the companion disagrees with the network on {disagrees:.1%} of {n} clean images (trusted: up to "
        f"{plan.trusted:.0%}): it would not stop an attacker who knows it, and neither guards nor screens; "
        "train it for more epochs, on more images or at more pixels"
    )
    training = plan.training | {"notes": [*plan.training.get("notes", []), note]}
    return replace(plan, guard=None, screened_by=(), training=training)


def input_spec(data: Dataset, resize: Resize, normalise: Normalisation | None = None) -> InputSpec:
    """The images that a network trained on `data` takes, and how others become such images."""
    height, width, channels = data.train.x.shape[1:]
    return InputSpec(height=height, width=width, channels=channels, resize=resize, normalise=normalise)


def normalisation_of(network: Network) -> Normalisation | None:
    """What a network does to pixels in [0, 1], of its buffers; None if it does not say."""
    found = getattr(network, "normalise", None)
    if not isinstance(found, Normalise):
        return None
    mean, std = ([float(f"{float(value):.7g}") for value in values.flatten()] for values in (found.mean, found.std))
    return Normalisation(channel_order="bgr" if found.reverse else "rgb", mean=mean, std=std)


class _Given(nn.Module):
    """A defence graph that returns only the outputs it computes."""

    def __init__(self, defence: DefenceGraph) -> None:
        super().__init__()
        self.defence = defence

    def forward(self, pixels: Tensor, mask: Tensor) -> tuple[Tensor, ...]:
        return tuple(output for output in self.defence(pixels, mask) if output is not None)


def outputs_of(defence: DefenceGraph) -> list[str]:
    """Names of what the graph computes, in order."""
    lacks = {"companion_logits": defence.companion is None, "screen_scores": not defence.screen_names}
    return [name for name in DefenceOutputs._fields if not lacks.get(name, False)]


def export_defence(
    defence: DefenceGraph, folder: Path, *, channels: int, height: int, width: int, progress: Progress = silent
) -> dict[Part, GraphSpec]:
    """Write the graph's parts and their weights into `folder`; the parts as the manifest describes them."""
    progress(0, 100)
    generator = seeded(0)
    pixels = torch.rand(EXAMPLE_BATCH, channels, height, width, generator=generator)
    mask = (torch.rand(EXAMPLE_BATCH, height, width, generator=generator) < 0.1).float()
    model = export_graph(
        _Given(defence),
        inputs={"pixels": pixels, "mask": mask},
        outputs=outputs_of(defence),
        progress=lambda done, total: progress(85 * done // total, 100),
    )
    keep_blocked(model)
    progress(95, 100)
    parts = split_parts(model)
    write_parts(parts, folder)
    progress(100, 100)
    return graph_specs(parts)


def _sensitive(network: Network, data: Dataset) -> dict[str, list[int]]:
    """Sensitive neurons from clean/adversarial pairs of the select split (PGD-10, 8/255): 256, of large images 16."""
    batch = batch_of(*data.select.x.shape[1:3])
    pairs = max(16, batch)
    x, y = to_tensor(data.select.x[:pairs]), torch.from_numpy(data.select.y[:pairs])
    generator = seeded(0, 2)
    with frozen(network):
        adversarial = torch.cat(
            [
                pgd(network, some, labels, eps=8 / 255, steps=10, generator=generator)
                for some, labels in zip(x.split(batch), y.split(batch), strict=True)
            ]
        )
    return sensitive_neurons(network, x, adversarial)


def check_free(out: Path, *, force: bool) -> None:
    """Raise `TrainingError` if a bundle may not be written to `out`."""
    if out.exists() and not force:
        raise TrainingError(f"{out} exists; choose another --out or pass --force")
    if out.exists() and not (out / MANIFEST).is_file():
        raise TrainingError(f"{out} is not a bundle and would be lost; --force replaces bundles alone")
