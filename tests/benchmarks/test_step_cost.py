from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import typer
from typer.testing import CliRunner

import benchmarks.step_cost
from benchmarks.cost import Times
from benchmarks.step_cost import EVERY, Setting, Steps, both, main, ratios, settings
from training.losses.settings import Terms
from training.models import ModelSpec, build_model


def test_ratios_are_by_round() -> None:
    found, plain = Times([2.0, 9.0, 4.0], [2.0, 2.0, 2.0]), Times([1.0, 3.0, 2.0], [1.0, 2.0, 4.0])
    figures = ratios(found, plain)
    assert figures["ratio"] == 2.0  # of 2, 3 and 2; a round that was slow for both counts as any other
    assert figures["ratio_processor"] == 1.0
    low, high = figures["ratio_processor_quartiles"]
    assert low <= 1.0 <= high


def test_settings_compare_both_forms_with_the_plain_step() -> None:
    found = {name: setting.terms for name, setting in settings().items()}
    assert not found["AT"].active
    others = [terms for name, terms in found.items() if name != "AT"]
    assert {terms.jacobian.method for terms in others if terms.jacobian} == {"double_backprop", "finite_difference"}
    assert all(terms.jacobian and terms.selective and terms.sns for terms in others)
    assert {terms.sns.every for terms in others if terms.sns} == {1, EVERY}


@pytest.mark.parametrize("terms", [Terms(), both("double_backprop", fraction=1.0, every=EVERY)])
def test_a_call_trains_the_network(terms: Terms) -> None:
    network = build_model(ModelSpec(width=4, stem_stride=2), classes=43, mean=[0.4] * 3, std=[0.25] * 3, side=32)
    before = network.get_parameter("stem.0.weight").detach().clone()
    steps = Steps(network, Setting(terms), batch=8, steps=1, precision="fp32")
    steps()
    assert steps.done == EVERY
    assert not torch.equal(network.get_parameter("stem.0.weight"), before)


def test_it_writes_a_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    some = {"AT": Setting(Terms()), "SNS": Setting(Terms.model_validate({"sns": {"weight": 1}}))}
    monkeypatch.setattr(benchmarks.step_cost, "settings", lambda: some)
    app = typer.Typer()
    app.command()(main)
    path = tmp_path / "cost.json"
    options = ["--width", "4", "--batch", "8", "--steps", "1", "--repeats", "5", "--seconds", "0", "--json", str(path)]
    result = CliRunner().invoke(app, options)
    assert result.exit_code == 0, result.output
    report = json.loads(path.read_text("utf-8"))
    assert report["threads"] == 1
    assert [row["setting"] for row in report["settings"]] == list(some)
    assert report["settings"][0]["ratio"] == 1.0
    assert all(row["rounds"] >= 5 and row["step_ms"] > 0 for row in report["settings"])
