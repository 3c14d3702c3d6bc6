"""A tiny bundle of two trained networks, and a bench on it."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import yaml

from gateway.core.loading import Bundle, load_bundle
from tests.training.once import made_once
from tests.training.toy import CLASSES, SPEC, gratings, random_network, taught
from training.bundling.networks import NETWORKS, save_networks
from training.bundling.provenance import made_with
from training.commands.build import build_bundle
from training.data.dataset import Dataset, load_dataset
from training.defence.constants import fit_constants
from training.evaluate.harness.bench import Bench
from training.evaluate.harness.store import Store
from training.recipes.evaluation import Evaluation

TINY = Evaluation(
    robust=16,
    steps=5,
    autoattack=4,
    control=16,
    curve=8,
    shifts=12,
    unaware=16,
    minimal=8,
    square=8,
    square_queries=60,
    surrogate_epochs=1,
    patched=8,
    adaptive=6,
    adaptive_steps=5,
    adaptive_targets=1,
    doubled=4,
    adaptive_patched=1,
    harm=6,
    explained=6,
    layered=12,
    queried=1,
    queries=5,
    bounds=[
        {"figure": "accuracy_answering", "kind": "at_least", "bound": 0.5},
        {"figure": "pgd50_8", "kind": "at_most", "bound": 1.0},
        {"figure": "joint_excess_8", "kind": "at_most", "bound": 1.0},
    ],
)


def write_bundle(root: Path) -> None:
    """Data, recipes and networks in `root`, and in its `out` the bundle of them, without a card."""
    train, test = gratings(320, seed=1), gratings(32, seed=2)
    np.savez(
        root / "gratings.npz",
        x_train=train.x,
        y_train=train.y,
        track_train=np.arange(320) // 2,
        x_test=test.x,
        y_test=test.y,
        classes=np.array([f"direction {k}" for k in range(CLASSES)]),
    )
    common = {
        "data": {"source": "npz:gratings", "fractions": [0.5, 0.25, 0.25]},
        "model": SPEC.model_dump(mode="json"),
        "precision": "fp32",
    }
    for role in ("standard", "companion"):
        recipe = {**common, "name": role, "stages": [{"name": "none", "epochs": 1, "lr": 0.1}]}
        (root / f"{role}.yaml").write_text(yaml.safe_dump(recipe))
    recipe = {
        "name": "gratings",
        "version": "1.0.0",
        "standard": "standard.yaml",
        "companion": "companion.yaml",
        "samples": 1,
        "evaluation": TINY.model_dump(mode="json"),
    }
    (root / "bundle.yaml").write_text(yaml.safe_dump(recipe))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PALISADE_DATA", str(root))
        data = load_dataset("npz:gratings", fractions=(0.5, 0.25, 0.25))
        network, companion = (taught(random_network(seed, warm=False), data, steps=50) for seed in (0, 1))
        constants = fit_constants(network, data.train, data.select, classes=CLASSES)
        save_networks(root / NETWORKS, standard=network, companion=companion, constants=constants)
        build_bundle(root / "bundle.yaml", root / "out", runs=root / "runs", networks=root / NETWORKS, card=False)


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bundle]:
    """A bundle without a card, and its data where PALISADE_DATA says."""
    root = tmp_path_factory.mktemp("evaluate") / "bundle"
    # A copy for each process: what a test writes into it concerns no other.
    shutil.copytree(made_once(tmp_path_factory, "evaluated-bundle", write_bundle), root)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PALISADE_DATA", str(root))
        yield load_bundle(root / "out")


@pytest.fixture(scope="session")
def data(bundle: Bundle) -> Dataset:
    return made_with(bundle)[0]


@pytest.fixture(scope="session")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One work folder for all tests, so that nothing is measured twice."""
    return tmp_path_factory.mktemp("work")


@pytest.fixture
def fresh(bundle: Bundle, data: Dataset, tmp_path: Path) -> Callable[..., Bench]:
    """A bench with a work folder of its own, and settings that differ from `TINY` as named."""

    def make(**settings: object) -> Bench:
        return Bench(bundle, data, TINY.model_copy(update=settings), Store(tmp_path / "work"))

    return make


@pytest.fixture(scope="session")
def shared(bundle: Bundle, data: Dataset, work: Path) -> Bench:
    """The bench that all tests share; `work` has what was measured on it."""
    return Bench(bundle, data, TINY, Store(work))
