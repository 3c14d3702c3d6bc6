"""A network of small fields in a bundle: `gateway.core.small_field`.

Its tensors are kept beside the graph, so that anyone can attack it; serving never reads them.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from gateway.core.loading import Bundle, load_bundle, write_manifest
from gateway.core.manifest import Manifest
from training.bundling.provenance import made_with
from training.bundling.rules import revised
from training.data.dataset import Dataset
from training.errors import TrainingError
from training.export.fold import folded
from training.export.small_field import export_small_field
from training.loop.weights import load_kept, network_in, read_kept, write_kept
from training.models.small_field import SmallField
from training.util.atomic import draft_of

TENSORS = "small_field.safetensors"


def with_small_field(path: Path, out: Path, weights: Path, *, version: str | None = None) -> Bundle:
    """Write to `out` the bundle in `path` with the network of small fields in the file `weights`.

    Nothing else changes: scores, p-values, flags and answers stay, so that the version may, too. Raises `TrainingError`
    where `out` exists, the network is another one or was trained on other splits, or the data are not those that the
    bundle was made with.
    """
    bundle = load_bundle(path)
    if out.exists():
        raise TrainingError(f"{out} exists; choose another --out")
    manifest, (data, _) = revised(bundle, version), made_with(bundle)
    with draft_of(out) as draft:
        shutil.copytree(bundle.path, draft, dirs_exist_ok=True)
        add_small_field(draft, manifest, data, weights)
    return load_bundle(out)


def add_small_field(folder: Path, manifest: Manifest, data: Dataset, weights: Path) -> None:
    """Give the bundle in `folder` the network in the file `weights`, and this `manifest`; raises `TrainingError`."""
    kept, network = load_kept(weights, None, data)
    if not isinstance(network, SmallField):
        raise TrainingError(f"{weights} is of the architecture {kept.recipe.model.arch}, not small_field")
    export_small_field(network, folder, manifest.input)
    write_kept(folder / TENSORS, dict(network.state_dict()), kept)
    training = manifest.training | {"small_field": kept.model_dump(mode="json")}
    changed = manifest.model_copy(update={"small_field": network.spec, "training": training})
    write_manifest(folder, changed, as_read=True)
    load_bundle(folder)


def load_small_field(bundle: Bundle) -> SmallField:
    """The bundle's network of small fields in torch, BatchNorm folded; `TrainingError` if its tensors are not there."""
    path, manifest = bundle.path / TENSORS, bundle.manifest
    kept = read_kept(path)
    network = network_in(path, kept, classes=len(manifest.classes), side=manifest.input.height)
    made = folded(network, side=manifest.input.height)
    if not isinstance(made, SmallField):
        raise TrainingError(f"{path} has no network of small fields")
    return made
