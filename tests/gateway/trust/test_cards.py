"""Which robustness cards `PALISADE_REQUIRE_CARD` takes."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import pytest

from gateway.core.loading import load_bundle, read_manifest, write_manifest
from gateway.errors import CardRefused, ConfigError
from gateway.settings import Settings
from gateway.trust.cards import require_card
from gateway.versions.registry import load_registry
from tests.gateway.tiny import write_bundle

TODAY = date(2026, 11, 29)
GOOD: dict[str, Any] = {
    "bundle": "tiny",
    "version": "1.0.0",
    "status": "complete",
    "date": "2026-11-20",
    "checks": [{"check": "control", "passed": True}],
}


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({}, None),
        ({"status": "incomplete", "missing": ["pgd_4"], "reduced": ["harm"]}, "pgd_4, harm"),
        ({"status": None}, "of no status"),
        ({"checks": [{"check": "control", "passed": False}]}, "control"),
        ({"checks": [{"check": "noise", "passed": None}]}, "noise"),
        ({"date": "2026-10-01"}, "older than 30 days"),
        ({"units": [{"date": "2026-11-20"}, {"date": "2026-10-01"}]}, "of 2026-10-01, older than 30 days"),
        ({"units": [{"date": "2026-12-24"}]}, "a day to come"),
        ({"units": [{}]}, "no date"),
        ({"date": "2026-12-24"}, "a day to come"),
        ({"date": "soon"}, "no date"),
        ({"date": None}, "no date"),
        ({"version": "0.9.0"}, "of tiny 0.9.0, not of tiny 1.0.0"),
        ({"bundle": "other"}, "of other 1.0.0, not of tiny 1.0.0"),
        ({"checks": None}, "not laid out"),
        ({"checks": [1]}, "not laid out"),
        ({"checks": [{}]}, "not laid out"),
        ({"status": "incomplete", "missing": None}, "not laid out"),
        ({"checks": [{"check": 5, "passed": False}]}, "did not pass: 5"),
    ],
)
def test_cards(bundle_folder: Path, change: dict[str, Any], problem: str | None) -> None:
    bundle = replace(load_bundle(bundle_folder), robustness=GOOD | change)
    if problem is None:
        require_card(bundle, 30, today=TODAY)
        return
    with pytest.raises(CardRefused, match=problem):
        require_card(bundle, 30, today=TODAY)


def test_a_bundle_without_a_card_is_not_served(tmp_path: Path) -> None:
    folder = write_bundle(tmp_path / "tiny")
    with pytest.raises(ConfigError, match=r"card\.json: missing"):
        load_registry(Settings(models=[folder], threads=1, require_card=30))
    (folder / "card.json").write_text(json.dumps(GOOD | {"date": datetime.now(UTC).date().isoformat()}))
    write_manifest(folder, read_manifest(folder), as_read=True)
    assert load_registry(Settings(models=[folder], threads=1, require_card=30)).names == ["tiny"]
