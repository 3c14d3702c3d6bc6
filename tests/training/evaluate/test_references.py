"""The table of public taxonomies: whole, and shown."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from training.evaluate.references import REFERENCES, SECTIONS, TECHNIQUES, references_of
from training.evaluate.units import UNITS

CARDS = sorted((Path(__file__).resolve().parents[3] / "models").glob("*/card.json"))


def test_every_unit_has_a_row_and_every_row_a_unit() -> None:
    assert set(REFERENCES) == set(UNITS)


@pytest.mark.parametrize("name", UNITS)
def test_every_attack_is_named_in_both_taxonomies(name: str) -> None:
    found = REFERENCES[name]
    if UNITS[name].level in {"1", "2", "3", "4", "5"}:
        assert found.nist
        assert "AML.T0015" in found.atlas
        assert any(technique.startswith("AML.T0043.") for technique in found.atlas)
    assert set(found.nist) <= set(SECTIONS)
    assert set(found.atlas) <= set(TECHNIQUES)


def test_what_an_attacker_knows_is_what_the_level_says() -> None:
    levels = {name: unit.level for name, unit in UNITS.items()}
    assert all("2.2.5" in REFERENCES[name].nist for name, level in levels.items() if level == "4")
    transferred = [name for name in UNITS if name.startswith("transfer_")]
    assert all(REFERENCES[name].nist == ("2.2.3",) for name in transferred)
    assert all("AML.T0040" in REFERENCES[name].atlas for name, level in levels.items() if level == "5")


def test_names_have_the_form_of_their_taxonomy_and_all_are_used() -> None:
    assert all(re.fullmatch(r"AML\.T\d{4}(\.\d{3})?", name) for name in TECHNIQUES)
    assert all(re.fullmatch(r"2\.2\.\d", number) for number in SECTIONS)
    assert {name for found in REFERENCES.values() for name in found.atlas} == set(TECHNIQUES)
    assert {number for found in REFERENCES.values() for number in found.nist} == set(SECTIONS)


def test_a_unit_of_another_package_has_no_references() -> None:
    assert references_of(["pgd_8", "elsewhere"]).keys() == {"pgd_8"}


@pytest.mark.parametrize("path", CARDS, ids=lambda path: path.parent.name)
def test_shipped_cards_show_them(path: Path) -> None:
    card, page = json.loads(path.read_text("utf-8")), path.with_name("card.md").read_text("utf-8")
    for row in card["units"]:
        found = REFERENCES[row["unit"]]
        assert card["titles"]["references"][row["unit"]] == {"nist": found.sections, "atlas": found.techniques}
        lines = [line for line in page.splitlines() if line.startswith(f"| {row['unit']} |")]
        assert any(all(name in line for name in (*found.nist, *found.atlas)) for line in lines)
        assert all(name in page for name in (*found.sections, *found.techniques))
