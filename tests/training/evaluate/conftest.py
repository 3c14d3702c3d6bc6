"""A tiny bundle of two trained networks, and a bench on it."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from gateway.core.loading import Bundle, load_bundle
from tests.training.once import made_once
from tests.training.toy import CLASSES, SPEC, random_network, taught, write_sources
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
    certified=8,
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
    extra = {"evaluation": TINY.model_dump(mode="json")}
    recipe = write_sources(root, count=320, tests=32, fractions=[0.5, 0.25, 0.25], model=SPEC, bundle=extra)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PALISADE_DATA", str(root))
        data = load_dataset("npz:gratings", fractions=(0.5, 0.25, 0.25))
        network, companion = (taught(random_network(seed, warm=False), data, steps=50) for seed in (0, 1))
        constants = fit_constants(network, data.train, data.select, classes=CLASSES)
        save_networks(root / NETWORKS, standard=network, companion=companion, constants=constants)
        build_bundle(recipe, root / "out", runs=root / "runs", networks=root / NETWORKS, card=False)


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
