"""The units of the pool, on a tiny bundle, with the network of small fields and without."""

from __future__ import annotations

import pytest

from gateway.core.loading import Bundle, load_bundle
from tests.training.evaluate.conftest import TINY
from tests.training.small_fields import write_small_field
from training.bundling.pool import with_pool
from training.bundling.small_field import TENSORS, with_small_field
from training.data.dataset import Dataset
from training.evaluate.harness.bench import Bench
from training.evaluate.harness.found import value_of
from training.evaluate.harness.store import Store
from training.evaluate.measurements.pool import (
    UNITS,
    PoolAdaptive,
    PoolBenign,
    PoolUnaware,
    adaptive_pool,
    pool_benign,
    pool_unaware,
)
from training.evaluate.units import UNITS as ALL


@pytest.fixture(scope="module", params=["both networks", "all three"])
def pooling(
    request: pytest.FixtureRequest, bundle: Bundle, data: Dataset, tmp_path_factory: pytest.TempPathFactory
) -> Bench:
    folder, subject = tmp_path_factory.mktemp("pooling"), bundle.path
    if request.param == "all three":
        weights = write_small_field(folder / "fields.safetensors", data)
        subject = with_small_field(subject, folder / "with", weights).path
    with_pool(subject, folder / "bundle")
    settings = TINY.model_copy(update={"voted": 16, "pooled": 4, "adaptive_steps": 4})
    return Bench(load_bundle(folder / "bundle"), data, settings, Store(folder / "work"))


def test_what_the_pool_costs_and_what_it_gains(pooling: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    families = ("dull_sticker", "fgsm_8")
    monkeypatch.setattr("training.evaluate.measurements.pool.CHANGES", ("dark_60",))
    monkeypatch.setattr("training.evaluate.measurements.pool.NOISES", ("noise_0.02",))
    monkeypatch.setattr("training.evaluate.measurements.pool.FAMILIES", families)
    benign, unaware = pool_benign(pooling), pool_unaware(pooling)
    assert isinstance(benign.section, PoolBenign)
    assert benign.section.right >= benign.section.without - benign.section.harmed - 1e-9
    assert benign.section.n == 16
    assert set(benign.section.shifts) == {"dark_60", "noise_0.02"}
    assert isinstance(unaware.section, PoolUnaware)
    for name, row in unaware.section.pool_unaware.items():
        fooled = unaware.outcomes[f"pool_fooled_{name}"]
        assert (row.n, row.fooled) == (len(fooled), fooled.sum())
        assert row.right == value_of(unaware.figures[f"pool_right_{name}"], unaware.outcomes)
        assert row.undetected.at_5 == value_of(unaware.figures[f"pool_undetected_{name}_0.05"], unaware.outcomes)
        assert row.votes is None
    contents = (benign.section.to_json(), unaware.section.to_json()["pool_unaware"])
    for name, found, content in zip(("pool", "pool_unaware"), (benign, unaware), contents, strict=True):
        (unit,) = (each for each in UNITS if each.name == name)
        assert unit.fits(found.section.to_json())
        assert set(found.figures) <= set(unit.figures)
        assert unit.places[0].body(content)


def test_an_attacker_who_knows_the_pool_wins_no_less_at_a_smaller_alpha(pooling: Bench) -> None:
    found = adaptive_pool(pooling, 8)
    assert isinstance(found.section, PoolAdaptive)
    assert found.section.n == 4
    assert (found.outcomes["pool_adaptive_0.05"] <= found.outcomes["pool_adaptive_0.01"]).all()
    (unit,) = (each for each in UNITS if each.name == "pool_adaptive")
    assert unit.fits(found.section.to_json())
    assert unit.places[0].body(found.section.to_json())


def test_bundles_without_a_pool_have_no_such_unit(bundle: Bundle, data: Dataset, pooling: Bench) -> None:
    for name, n in (("pool", 16), ("pool_unaware", TINY.patched), ("pool_adaptive", 4)):
        assert ALL[name].images(TINY, bundle, data) == 0
        assert ALL[name].images(pooling.settings, pooling.bundle, data) == n


def test_an_attack_on_all_three_needs_the_tensors_of_the_third(pooling: Bench, data: Dataset) -> None:
    path = pooling.bundle.path / TENSORS
    if path.is_file():
        path.rename(path.with_suffix(".moved"))
        assert ALL["pool_adaptive"].images(pooling.settings, pooling.bundle, data) == 0
        path.with_suffix(".moved").rename(path)
