from __future__ import annotations

import stat
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
import torch

from gateway.core.loading import Bundle
from gateway.core.manifest import Manifest
from tests.training.toy import CLASSES, SIDE, SPEC, random_network
from training.bundling.networks import NETWORKS, load_defence, save_networks
from training.defence.graph import DefenceGraph
from training.defence.localisers import LOCALISER
from training.defence.scores import default_scores
from training.errors import TrainingError


def bundle_at(folder: Path, *, classes: int = CLASSES, model: dict[str, object] | None = None) -> Bundle:
    """What `load_defence` reads of a bundle."""
    spec = {"model": SPEC.model_dump(mode="json") if model is None else model}
    manifest = SimpleNamespace(
        training={"standard": spec, "companion": spec},
        companion=True,
        input=SimpleNamespace(channels=3, height=SIDE, normalise=None),
        classes=[str(k) for k in range(classes)],
        scores=list(default_scores(companion=True)),
        localiser=LOCALISER,
        layers=[],
    )
    return Bundle(path=folder, manifest=cast(Manifest, manifest), arrays={})


@pytest.fixture(scope="module")
def folder(defence: DefenceGraph, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The networks that `defence` was folded from, and its constants, as a file."""
    path = tmp_path_factory.mktemp("networks")
    networks = {"standard": random_network(0), "companion": random_network(1)}
    save_networks(path / NETWORKS, **networks, constants=defence.constants)
    return path


def test_round_trip_gives_the_same_outputs(folder: Path, defence: DefenceGraph) -> None:
    loaded = load_defence(bundle_at(folder))
    x, mask = torch.rand(4, 3, SIDE, SIDE), torch.zeros(4, SIDE, SIDE)
    mask[1, 4:9, 4:9] = 1
    for (name, found), expected in zip(loaded(x, mask)._asdict().items(), defence(x, mask), strict=True):
        assert torch.equal(found, expected), name
    assert not any(parameter.requires_grad for parameter in loaded.parameters())


def test_others_may_read_the_file(folder: Path) -> None:
    assert stat.S_IMODE((folder / NETWORKS).stat().st_mode) == 0o644


def test_a_missing_or_broken_file_is_one_sentence(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=NETWORKS):
        load_defence(bundle_at(tmp_path))
    (tmp_path / NETWORKS).write_bytes((folder / NETWORKS).read_bytes()[:100])
    with pytest.raises(TrainingError, match=NETWORKS):
        load_defence(bundle_at(tmp_path))


def test_other_shapes_than_the_manifests_are_refused(folder: Path) -> None:
    wider = SPEC.model_copy(update={"width": 8}).model_dump(mode="json")
    for other in (bundle_at(folder, classes=CLASSES + 1), bundle_at(folder, model=wider)):
        with pytest.raises(TrainingError, match="cannot rebuild"):
            load_defence(other)


@pytest.mark.parametrize("model", [{"arch": "another"}, {"width": "wide"}, {"depth": 3}])
def test_an_architecture_that_is_not_ours_is_refused(folder: Path, model: dict[str, object]) -> None:
    with pytest.raises(TrainingError, match="cannot rebuild"):
        load_defence(bundle_at(folder, model=model))
