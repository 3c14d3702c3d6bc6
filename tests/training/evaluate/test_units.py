"""A unit and an attack are declared in one place: what they declare reaches the card, its page and its titles."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import TypeAdapter
from torch import Tensor

from training.attacks.listed import ATTACKS
from training.attacks.unaware import Attack, Made, Scene, by_name
from training.errors import RecipeError, TrainingError
from training.evaluate.card import assemble, check, extended, page_of, without_units
from training.evaluate.harness.bench import Bench
from training.evaluate.harness.found import Figure, Found, unpack
from training.evaluate.harness.section import Section
from training.evaluate.harness.shown import Body
from training.evaluate.harness.unit import LEVELS, QUESTIONS, Place, Unit, places_of
from training.evaluate.measurements.unaware import unit_of
from training.evaluate.run import finished, run_units
from training.evaluate.units import UNITS, known_figures
from training.evaluate.verify import contradictions
from training.recipes.evaluation import Bound, Evaluation

ROOT = Path(__file__).resolve().parents[3]
CARDS = sorted((ROOT / "models").glob("*/card.json"))
Fresh = Callable[..., Bench]


class Dark(Section):
    n: int
    dark: float


def dark(bench: Bench) -> Found:
    test = bench.first(bench.settings.curve)
    which = test.x.mean((1, 2, 3)) < 128
    section = Dark(n=len(test), dark=float(which.mean()))
    return Found(section, {"dark": Figure("dark", at=("dark", "dark"))}, {"dark": which})


def shown(found: Dark) -> Body:
    return [f"Of {found.n} images {100 * found.dark:.1f} % are dark."]


TOY = Unit(
    "dark",
    "0",
    "dark test images",
    dark,
    Dark,
    ("dark",),
    (Place("dark", "Dark images", "How much of the test split is dark.", "benign", Dark, shown),),
    figures={"dark": "dark test images"},
    count="curve",
)


def test_a_toy_unit_reaches_card_page_titles_and_bounds(fresh: Fresh, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(UNITS, "dark", TOY)
    bound = Bound(figure="dark", kind="at_most", bound=1.0)
    bench = fresh(bounds=[bound])
    assert run_units(bench, ["dark"]) == {}
    card = assemble(bench)
    assert card["dark"]["n"] == 8
    assert card["figures"]["dark"]["value"] == card["dark"]["dark"]
    assert card["titles"]["figures"] == {"dark": "dark test images"}
    assert card["titles"]["sections"]["dark"] == {
        "title": "Dark images",
        "text": "How much of the test split is dark.",
        "question": "benign",
    }
    page = page_of(card, check(card["figures"], [bound]))
    assert "| dark test images | " in page
    order = [
        page.index(text) for text in (f"## {QUESTIONS['benign']}", "### Dark images", f"## {QUESTIONS['measured']}")
    ]
    assert order == sorted(order)


def noisy(scene: Scene, x: Tensor, _y: Tensor) -> Made:
    noise = torch.rand(x.shape, generator=scene.generator).to(x)
    return Made(noise, {"queries": np.ones(len(x))})


def test_a_toy_attack_reaches_card_page_and_titles(fresh: Fresh, monkeypatch: pytest.MonkeyPatch) -> None:
    attack = Attack("snow", "snow storm", noisy, level="1", count="minimal")
    monkeypatch.setitem(ATTACKS, "snow", attack)
    monkeypatch.setitem(UNITS, "snow", unit_of(attack))
    bench = fresh()
    assert run_units(bench, ["snow"]) == {}
    card = assemble(bench)
    assert card["unaware"]["snow"]["n"] == 8
    assert card["unaware"]["snow"]["median_queries"] == 1
    assert card["titles"]["attacks"] == {"snow": "snow storm"}
    assert {"detected_snow_0.01", "detected_snow_0.05"} <= set(card["titles"]["figures"])
    assert card["titles"]["figures"]["detected_snow_0.05"].startswith("snow storm: detected")
    assert "| snow storm | 8 |" in page_of(card, [])


def test_a_card_is_extended_by_what_is_measured_later(fresh: Fresh, monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole card measured at once, and in two runs of different folders, states the same."""
    monkeypatch.setitem(UNITS, "dark", TOY)
    first, second, both = fresh(), fresh(), fresh()
    assert run_units(first, ["gradients"]) == run_units(second, ["dark", "control"]) == {}
    assert run_units(both, ["dark", "control", "gradients"]) == {}
    old, whole = assemble(first), assemble(both)
    before = json.dumps(old)
    new = extended(old, assemble(second))
    assert json.dumps(old) == before
    for key in ("missing", "reduced", "status", "figures", "titles", "dark", "gradients", "control", "settings"):
        assert new[key] == whole[key], key
    assert [row["unit"] for row in new["units"]] == [row["unit"] for row in whole["units"]]
    assert contradictions(new, {row["name"]: unpack(row) for row in new["outcomes"]}) == []
    again = extended(new, assemble(second))
    assert {**again, "date": ""} == {**new, "date": ""}
    with pytest.raises(TrainingError, match="version"):
        extended(old | {"version": "9.9.9"}, assemble(second))
    # A number of images that no unit of the card uses, but for those that are measured anew, may be any.
    asked = assemble(second)
    asked["settings"] = asked["settings"] | {"voted_patched": 7}
    assert extended(old, asked)["settings"]["voted_patched"] == 7
    asked["settings"] = whole["settings"] | {"control": 7}
    rows = asked["units"]
    asked["units"] = [row for row in rows if row["unit"] == "dark"]
    with pytest.raises(TrainingError, match="control"):
        extended(whole, asked)
    asked["units"] = rows
    assert extended(whole, asked)["settings"]["control"] == 7


def test_what_a_bundle_has_no_more_leaves_its_card(fresh: Fresh, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(UNITS, "dark", TOY)
    bench = fresh()
    assert run_units(bench, ["dark", "gradients"]) == {}
    whole = assemble(bench)
    before = json.dumps(whole)
    left = without_units(whole, ["dark", "votes"])
    assert json.dumps(whole) == before
    assert left["gradients"] == whole["gradients"]
    assert left["figures"] == {name: row for name, row in whole["figures"].items() if name != "dark"}
    assert "dark" not in {row["name"] for row in left["outcomes"]}
    assert "dark" not in left
    assert "dark" not in {**left["titles"]["units"], **left["titles"]["figures"], **left["titles"]["sections"]}
    assert [row["unit"] for row in left["units"]] == ["gradients"]
    assert without_units(left, ["dark"]) == left


def test_names_of_attacks_are_unique() -> None:
    with pytest.raises(ValueError, match="two attacks are named 'snow'"):
        by_name(Attack("snow", "a", noisy), Attack("snow", "b", noisy))
    assert all(unit_of(attack).title.startswith(attack.title) for attack in ATTACKS.values())


def test_a_finished_result_that_is_no_section_of_its_unit_is_measured_again(fresh: Fresh) -> None:
    bench = fresh()
    assert run_units(bench, ["gradients"]) == {}
    result = bench.store.result("gradients")
    assert result is not None
    for broken in ({}, {"n": "many"}, result["section"] | {"luck": 1}):
        bench.store.finish("gradients", result | {"section": broken})
        assert finished(bench, "gradients") is None
    bench.store.finish("gradients", result)
    assert finished(bench, "gradients") == result


@pytest.mark.parametrize("path", CARDS, ids=lambda path: path.parent.name)
def test_shipped_cards_are_what_their_types_say(path: Path) -> None:
    """Every number of a shipped card passes through the typed sections unchanged."""
    card = json.loads(path.read_text("utf-8"))
    seen = set()
    for place in places_of(UNITS.values()):
        content = card.get(place.key)
        if content is None:
            continue
        seen.add(place.key)
        typed: TypeAdapter[Any] = TypeAdapter(place.model)
        again = typed.dump_python(typed.validate_python(content), mode="json", by_alias=True, exclude_unset=True)
        assert again == content, place.key
    groups = {key for key, value in card.items() if isinstance(value, dict)} - {"registration"}
    assert groups - seen == {"software", "settings", "figures", "samples", "titles", "forwards"}


@pytest.mark.parametrize("path", CARDS, ids=lambda path: path.parent.name)
def test_shipped_cards_have_a_title_for_everything(path: Path) -> None:
    card = json.loads(path.read_text("utf-8"))
    titles = card["titles"]
    assert card["schema_version"] == 5
    assert set(titles["figures"]) >= {*card["figures"], *(bound["figure"] for bound in card["settings"]["bounds"])}
    assert set(titles["attacks"]) >= set(card["unaware"])
    # An incomplete card has not every section.
    assert set(titles.get("systems", {})) == set(card.get("systems", {}).get("eps_8", {}))
    assert set(titles.get("shifts", {})) == {n for n, row in card.get("shifts", {}).items() if isinstance(row, dict)}
    assert all(section["question"] in QUESTIONS for section in titles["sections"].values())
    assert all(section["title"] and section["text"] for section in titles["sections"].values())


def test_a_malformed_section_is_named() -> None:
    place = next(place for place in places_of(UNITS.values()) if place.key == "adaptive")
    with pytest.raises(TrainingError, match=r"no such section: adaptive\.steps"):
        place.body({"n": 1, "steps": "x", "targets": 1, "restarts": 1})


def test_levels_are_those_of_the_threat_model() -> None:
    """Level numbers mean the same attacker in docs/threat-model.md, on the card and in `palisade evaluate --level`."""
    rows = re.findall(r"^\| (\d) \| ([^|]+) \|", (ROOT / "docs" / "threat-model.md").read_text("utf-8"), re.MULTILINE)
    assert [level for level in LEVELS if level.isdigit()] == [level for level, _ in rows]
    words = {
        "0": "noise",
        "1": "Square",
        "2": "unaware|ignores",
        "3": "patch",
        "4": "adaptive|all of them",
        "5": "quer|questions",
    }
    for level, attacker in rows:
        assert re.search(words[level], attacker), attacker
        assert re.search(words[level], LEVELS[level]), LEVELS[level]
    by_level = {level: {name for name, unit in UNITS.items() if unit.level == level} for level in LEVELS}
    assert {"patch", "patch_low", "strip", "bars", "dull_sticker", "rain", "sparse"} <= by_level["3"]
    assert {"adaptive_4", "adaptive_8", "patch_adaptive", "harm"} <= by_level["4"]
    assert by_level["5"] == {"queries"}


def test_a_bound_on_a_figure_that_no_unit_measures_is_named(tmp_path: Path) -> None:
    wrong = [Bound(figure="luck", kind="at_least", bound=1.0)]
    for refuse in (known_figures, lambda bounds: check({}, bounds)):
        with pytest.raises(TrainingError, match="unknown figure 'luck'; there are accuracy_answering"):
            refuse(wrong)
    known_figures([Bound(figure=name, kind="at_least", bound=0) for unit in UNITS.values() for name in unit.figures])


def test_a_recipe_with_such_a_bound_is_refused_before_anything_is_built(tmp_path: Path) -> None:
    from training.commands.build import build_bundle

    config = tmp_path / "bundle.yaml"
    bounds = [{"figure": "luck", "kind": "at_least", "bound": 1.0}]
    content = {"name": "x", "version": "1.0.0", "standard": "no.yaml", "companion": "no.yaml"}
    config.write_text(json.dumps(content | {"evaluation": {"bounds": bounds}}))
    with pytest.raises(RecipeError, match=r"bundle\.yaml: evaluation\.bounds: unknown figure 'luck'"):
        build_bundle(config, tmp_path / "out", runs=tmp_path / "runs")
    assert Evaluation.model_validate({"bounds": bounds}).bounds[0].figure == "luck"
