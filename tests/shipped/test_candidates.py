"""Bundles that are built and registered, and whose card is not whole yet: `training/candidates`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import training
from gateway.core.engine import Engine
from gateway.core.loading import load_bundle
from gateway.versions.replay import replay
from training.bundling.recipe import load_bundle_recipe
from training.evaluate.registration import differences, read_registration
from training.evaluate.units import UNITS

PACKAGE = Path(training.__file__).parent
CANDIDATES = sorted(path.parent for path in PACKAGE.glob("candidates/*/registration.json"))


@pytest.mark.parametrize("folder", CANDIDATES, ids=lambda path: path.name)
def test_a_candidate_is_the_registered_one_and_answers(folder: Path) -> None:
    bundle = load_bundle(folder / "bundle")
    manifest, recipe = bundle.manifest, load_bundle_recipe(PACKAGE / "configs" / folder.name / "bundle.yaml")
    assert (manifest.name, manifest.version) == (recipe.name, recipe.version)
    registered = read_registration(folder / "registration.json")
    name, version, evaluation = manifest.name, manifest.version, recipe.evaluation
    assert differences(registered, bundle=name, version=version, evaluation=evaluation, data=manifest.data) == []
    count, different = replay(bundle, Engine.open(bundle, device="cpu"))
    assert count >= 12
    assert not different


@pytest.mark.parametrize("folder", CANDIDATES, ids=lambda path: path.name)
def test_what_was_measured_of_a_candidate_is_of_known_units(folder: Path) -> None:
    for path in folder.glob("measured/units/*.json"):
        assert path.stem in UNITS
        assert json.loads(path.read_text("utf-8"))["n"] > 0
