"""Titles of everything on a card, written into it so that its readers (the console) need no list of their own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from training.attacks.listed import ATTACKS
from training.evaluate.harness.unit import places_of
from training.evaluate.measurements.adaptive import system_title
from training.evaluate.measurements.shifts import shift_title
from training.evaluate.presentation.content import section_titles
from training.evaluate.references import ATLAS, ATLAS_VERSION, NIST, references_of
from training.evaluate.units import UNITS, figures


def titles_of(card: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Titles of what is on `card`, by kind and key.

    {figures, attacks, systems, shifts, units, taxonomies: {key: title}; sections: {key: {title, text, question}};
    references: {unit: {nist, atlas: [titles]}}}.

    A key that the present units do not know keeps the title that the card has for it.
    """
    before: Mapping[str, Mapping[str, Any]] = card.get("titles", {})
    bounded = [bound["figure"] for bound in card["settings"].get("bounds", [])]
    systems = dict.fromkeys(name for part in card.get("systems", {}).values() for name in part)
    shifts = [name for name, row in card.get("shifts", {}).items() if isinstance(row, dict)]
    units = {*(row["unit"] for row in card.get("units", [])), *card.get("missing", []), *card.get("reduced", [])}
    sections = section_titles(places_of(UNITS.values()))
    present: dict[str, dict[str, Any]] = {
        "figures": _some(figures(), {*card["figures"], *bounded}),
        "attacks": _some({name: attack.title for name, attack in ATTACKS.items()}, set(card.get("unaware", {}))),
        "systems": {name: system_title(name) for name in systems},
        "shifts": {name: shift_title(name) for name in shifts},
        "units": {name: unit.title for name, unit in UNITS.items() if name in units},
        "taxonomies": {"nist": NIST, "atlas": f"{ATLAS} {ATLAS_VERSION}"},
        "references": references_of(name for name in UNITS if name in units),
        "sections": {key: section for key, section in sections.items() if card.get(key)},
    }
    older = {kind: before.get(kind, {}) for kind in present}
    return {
        kind: now | {key: older[kind][key] for key in older[kind] if key not in now} for kind, now in present.items()
    }


def _some(titles: Mapping[str, str], wanted: set[str]) -> dict[str, str]:
    return {name: title for name, title in titles.items() if name in wanted}
