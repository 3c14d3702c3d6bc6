from __future__ import annotations

import pytest

from training.evaluate.harness.bench import Bench
from training.evaluate.harness.found import Found, value_of
from training.evaluate.harness.shown import Table
from training.evaluate.measurements.layers import UNIT, WATCHED, layers


@pytest.fixture(scope="module")
def found(shared: Bench) -> Found:
    return layers(shared)


def test_figures_are_shares_of_outcomes_by_image(found) -> None:
    assert len(found.outcomes["moved"]) == found.section.answering.fooled
    assert value_of(found.figures["moved"], found.outcomes) == found.section.moved
    watched = found.section.to_json()["watched"]
    assert value_of(found.figures["watched"], found.outcomes) == watched["chosen"]["pgd_8"]["tpr_0.05"]
    assert found.outcomes["watched_fooled"].sum() == watched["attacked"]["pgd_8"]


def test_the_layer_chosen_is_watched_beside_all_and_each_alone(found, bundle) -> None:
    watched = found.section.to_json()["watched"]
    taps = [layer.name for layer in bundle.manifest.layers]
    assert list(watched["single"]) == taps
    assert len(watched["chosen_layers"]) == 1
    assert watched["chosen"] == watched["single"][watched["chosen_layers"][0]]
    assert set(watched["attacked"]) <= set(WATCHED)
    assert {row.layer for row in found.section.companion.rows} > set(taps)


def test_a_layer_without_a_vulnerability_to_speak_of_says_so(found) -> None:
    content = found.section.to_json()
    row = content["answering"]["rows"][0]
    row["interval"][1] = 1e5
    shown = UNIT.places[0].body(content)[2]
    assert isinstance(shown, Table)
    table = shown.rows
    assert table[0][:2] == ("answering network", row["layer"])
    assert table[0][3].startswith("undetermined")
    assert len(table) == sum(len(content[role]["rows"]) for role in ("answering", "companion"))
