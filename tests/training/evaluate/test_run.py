"""The whole evaluation of a tiny bundle: unit by unit, stopped, gone on with, and put together."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from PIL import Image

from gateway.core.loading import Bundle, load_bundle
from tests.training.evaluate.conftest import TINY
from training.attacks.listed import ATTACKS
from training.bundling.assemble import Plan, Silent
from training.bundling.assemble import assemble as assemble_bundle
from training.bundling.networks import NETWORKS, load_networks
from training.bundling.samples import Effort
from training.data.dataset import Dataset
from training.defence.scores import default_scores
from training.errors import TrainingError
from training.evaluate import units
from training.evaluate.card import assemble, drawn, write_card
from training.evaluate.harness.alone import Standing
from training.evaluate.harness.bench import Bench
from training.evaluate.harness.found import Found
from training.evaluate.harness.store import Store
from training.evaluate.harness.unit import LEVELS, Unit
from training.evaluate.run import finished, plan, run_units
from training.evaluate.units import UNITS, chosen
from training.models import ModelSpec

ABSENT = {
    "votes",
    "votes_unaware",
    "votes_adaptive",
    "pool",
    "pool_unaware",
    "pool_adaptive",
    "pool_adaptive_4",
    "small_field",
}  # of bundles that have what they measure
QUICK = [
    name
    for name in UNITS
    if name not in {"queries", "autoattack_4", "transfer_16", "transfer_robust_16", "explanations", *ABSENT}
]


def standing(n: int, accuracy: float) -> Standing:
    return Standing(n=n, eps=16.0, steps=1, restarts=1, accuracy=accuracy, accuracy_interval=None)


def control(run: Callable[[Bench], Found]) -> Unit:
    return Unit("control", "2", "x", run, Standing, ("control",), count="control")


@pytest.fixture(scope="module")
def card(shared: Bench) -> dict[str, Any]:
    """Everything but the slowest units, measured once."""
    assert run_units(shared, QUICK) == {}
    return assemble(shared)


def test_what_is_missing_is_said_to_be(card: dict[str, Any]) -> None:
    assert set(card["missing"]) == set(UNITS) - set(QUICK) - ABSENT
    assert card["status"] in {"incomplete", "failed"}
    assert card["reduced"] == []
    assert {row["unit"] for row in card["units"]} == set(QUICK)


def test_the_tables_are_there(card: dict[str, Any]) -> None:
    assert {
        "benign",
        "shifts",
        "companion_pgd",
        "autoattack",
        "control",
        "curve",
        "unaware",
        "adaptive",
        "systems",
        "cascade",
        "detection",
        "patches",
        "patch_adaptive",
        "harm",
        "doubled",
        "smoothed",
    } <= set(card)
    assert set(card["unaware"]) == set(ATTACKS) & set(QUICK)
    assert set(card["cascade"]["attacks"]) == set(card["unaware"])
    assert set(card["adaptive"]["eps_8"]) >= {"alpha_0.01", "alpha_0.05", "companion", "excess_0.05", "half"}
    assert card["benign"]["n"] == 32
    assert card["companion_pgd"]["eps_8"]["n"] == 16
    json.dumps(card)


def test_more_flags_leave_less_to_the_attacker(card: dict[str, Any]) -> None:
    for eps in ("eps_4", "eps_8"):
        for row in card["systems"][eps].values():
            assert row["fpr_0.01"] >= row["fpr_0.05"] >= row["fpr_0.1"]
        rows = card["systems"][eps]
        assert all(
            rows["answering"]["fpr_0.01"] >= row["fpr_0.01"] for name, row in rows.items() if name != "companion_alone"
        )
    assert sum(card["stages"]["eps_8"].values()) == round(6 * card["adaptive"]["eps_8"]["alpha_0.05"])


def test_a_larger_radius_leaves_less(card: dict[str, Any]) -> None:
    assert card["companion_pgd"]["eps_8"]["accuracy"] <= card["companion_pgd"]["eps_4"]["accuracy"]
    assert card["curve"]["answering"]["255"] < card["curve"]["answering"]["0"]
    assert card["control"]["accuracy"] == 0


def test_its_files_are_written(card: dict[str, Any], shared: Bench, tmp_path: Path) -> None:
    cell = {"kind": "clean", "image": "data:image/png;base64,AA==", "map": "data:image/png;base64,AB=="}
    row = {"cells": [cell | {"label": "stop", "right": True, "flagged": False}]}
    for pictures in ([], [row]):
        write_card(tmp_path, card, replace(drawn(shared), pictures=pictures))
        report = (tmp_path / "report.html").read_text()
        assert "ROC: PGD 8/255" in report
        assert report.count("data:image/png") == 2 * len(pictures)


def test_finished_units_are_not_measured_again(card: dict[str, Any], shared: Bench) -> None:
    said: list[str] = []
    assert run_units(shared, QUICK, log=said.append) == {}
    assert said == []
    assert all(row.done for row in plan(shared, QUICK))
    assert assemble(shared)["figures"] == card["figures"]


def test_another_bundle_setting_or_seed_finds_nothing_finished(card: dict[str, Any], shared: Bench) -> None:
    other = Bench(shared.bundle, shared.data, shared.settings.model_copy(update={"seed": 1}), shared.store)
    assert finished(other, "pgd_8") is None
    steps = Bench(shared.bundle, shared.data, shared.settings.model_copy(update={"steps": 6}), shared.store)
    assert finished(steps, "pgd_8") is None
    assert finished(steps, "benign") is not None
    assert "pgd_8" in assemble(steps)["missing"]


def test_fewer_images_than_asked_are_said_and_measured_anew(fresh: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def count(bench: Bench) -> Found:
        asked.append(bench.settings.control)
        return Found(standing(bench.settings.control, 0.0))

    monkeypatch.setitem(UNITS, "control", control(count))
    run_units(fresh(control=4), ["control"])
    assert assemble(fresh(control=8))["reduced"] == ["control"]
    run_units(fresh(control=8), ["control"])
    run_units(fresh(control=4), ["control"])
    assert asked == [4, 8]
    assert assemble(fresh(control=8))["control"]["n"] == 8


def test_a_unit_that_cannot_run_leaves_the_others_alone(fresh: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_bench: Bench) -> Found:
        raise TrainingError("no such package")

    monkeypatch.setitem(UNITS, "control", control(broken))
    bench = fresh()
    assert run_units(bench, ["control", "gradients"]) == {"control": "no such package"}
    found = assemble(bench)
    assert "control" in found["missing"]
    assert found["gradients"]["n"] == 16


def test_a_failed_self_check_fails_the_card(fresh: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    weak = Found(standing(16, 0.5))
    monkeypatch.setitem(UNITS, "control", control(lambda _bench: weak))
    bench = fresh()
    run_units(bench, ["control"])
    assert assemble(bench)["status"] == "failed"


def test_chosen_units() -> None:
    assert chosen() == chosen(["all"]) == list(UNITS)
    assert chosen(["0"]) == ["benign", "cascade", "shifts", "votes", "pool", "certificates", "small_field"]
    assert chosen(["0"], ["pgd_8"]) == [
        "benign",
        "cascade",
        "shifts",
        "pgd_8",
        "votes",
        "pool",
        "certificates",
        "small_field",
    ]
    assert {unit.level for unit in UNITS.values()} == set(LEVELS)
    with pytest.raises(TrainingError, match="unknown level '7'; there are 0, 1"):
        chosen(["7"])
    with pytest.raises(TrainingError, match="unknown unit 'luck'; there are benign"):
        chosen(only=["luck"])


def test_every_figure_is_some_units() -> None:
    named = [figure for unit in UNITS.values() for figure in unit.figures]
    assert sorted(named) == sorted(units.figures())
    assert len(named) == len(set(named))
    assert set(units.BASIC) <= set(UNITS)


def test_attacked_images_are_those_of_the_network(shared: Bench, card: dict[str, Any]) -> None:
    from training.evaluate.harness.attacked import attacked

    assert card
    made = attacked(shared, "pgd_8")
    assert np.abs(made.images.astype(int) - made.clean.x).max() <= 8
    patched = attacked(shared, "patch")
    changed = (patched.images != patched.clean.x).any(3)
    assert not (changed & ~patched.rows["mask"]).any()


def test_a_bundle_without_a_companion(bundle: Bundle, data: Dataset, tmp_path: Path) -> None:
    """What asks for a companion is neither measured nor missed."""
    training, spec = {"standard": bundle.manifest.training["standard"]}, bundle.manifest.input
    models = {"standard": ModelSpec.model_validate(training["standard"]["model"])}
    networks = load_networks(bundle.path / NETWORKS, models, classes=len(data.classes), spec=spec)
    (tmp_path / "alone").mkdir()
    fused = default_scores(companion=False)
    alone = Plan(name="alone", version="1.0.0", training=training, fused=fused, samples=1, effort=Effort(8, 2))
    assemble_bundle(tmp_path / "alone", alone, networks, data, Silent())
    settings = TINY.model_copy(update={"bounds": TINY.bounds[:1]})
    bench = Bench(load_bundle(tmp_path / "alone"), data, settings, Store(tmp_path / "work"))
    names = [
        "benign",
        "control",
        "curve",
        "pgd_8",
        "patch",
        "adaptive_8",
        "doubled",
        "smoothed",
        "patch_adaptive",
        "harm",
    ]
    assert run_units(bench, names) == {}
    card = assemble(bench)
    assert {"companion_pgd", "autoattack", "cascade"}.isdisjoint(card)
    assert not any("companion" in name or name.startswith("autoattack") for name in card["missing"])
    assert set(card["systems"]["eps_8"]) >= {"answering", "max_softmax", "all"}
    assert not any("companion" in name or name == "strict" for name in card["systems"]["eps_8"])
    write_card(tmp_path, card, drawn(bench))
    told = (tmp_path / "card.md").read_text()
    assert "This bundle has no companion" in told
    assert "companion's own error" not in told
    assert "disagrees" not in told


def section(bench: Bench, name: str) -> dict[str, Any]:
    result = finished(bench, name)
    assert result is not None
    return cast(dict[str, Any], result["section"])


def test_how_often_the_companion_disagrees(fresh: Callable[..., Bench]) -> None:
    """Told of finished results too: a card that was made before it was told is completed."""
    bench = fresh()
    assert run_units(bench, ["benign"]) == {}
    found = bench.store.result("benign")
    assert found is not None
    assert found["section"]["benign"].pop("disagrees") == np.mean(bench.clean.companion != bench.clean.raw)
    bench.store.finish("benign", found)
    assert [row.done for row in plan(bench, ["benign"])] == [False]
    assert run_units(bench, ["benign"]) == {}
    assert "disagrees" in section(bench, "benign")["benign"]


def test_photos_that_come_later_are_looked_at(fresh: Callable[..., Bench], tmp_path: Path) -> None:
    bench = fresh(shifts=2)
    assert run_units(bench, ["shifts"]) == {}
    assert "other: photos" not in section(bench, "shifts")
    (tmp_path / "photos").mkdir()
    Image.new("RGB", (40, 30), "teal").save(tmp_path / "photos" / "one.png")
    (tmp_path / "photos" / "notes.txt").write_text("no image")
    bench.photos = tmp_path / "photos"
    assert [row.done for row in plan(bench, ["shifts"])] == [False]
    assert run_units(bench, ["shifts"]) == {}
    assert section(bench, "shifts")["other: photos"]["n"] == 1
    bench.photos = None
    assert [row.done for row in plan(bench, ["shifts"])] == [True]
