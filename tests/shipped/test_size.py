from __future__ import annotations

from pathlib import Path

import pytest

from gateway.core.engine import Engine
from gateway.core.loading import load_bundle
from gateway.versions.replay import replay

MODELS = Path(__file__).parents[2] / "models"
MAX_BYTES = 25_000_000


@pytest.mark.parametrize("folder", sorted(path.parent for path in MODELS.glob("*/manifest.json")), ids=lambda p: p.name)
def test_a_shipped_bundle_is_small_enough_for_the_repository(folder: Path) -> None:
    assert sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) <= MAX_BYTES


@pytest.mark.parametrize("folder", sorted(path.parent for path in MODELS.glob("*/manifest.json")), ids=lambda p: p.name)
def test_a_shipped_bundle_answers_its_samples_as_it_states(folder: Path) -> None:
    bundle = load_bundle(folder)
    count, different = replay(bundle, Engine.open(bundle, device="cpu"))
    assert count >= 12
    assert not different
