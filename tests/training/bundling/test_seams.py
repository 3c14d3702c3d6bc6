"""A bundle with a score and a localiser that only a test has: what they state is in graph, manifest, card, console."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from gateway.answers.respond import model_detail
from gateway.core.loading import Bundle, load_bundle
from gateway.core.manifest import Guard
from tests.training.seams import Brightest, FeatureNorm, pixels_of, registered
from tests.training.toy import SIDE, SPEC, random_network
from training.bundling.assemble import Plan, Silent, assemble
from training.bundling.networks import load_defence
from training.bundling.recipe import load_bundle_recipe
from training.bundling.samples import Effort
from training.data.dataset import Dataset
from training.defence.scores import default_scores
from training.errors import RecipeError, TrainingError
from training.evaluate.card import detector_rows
from training.evaluate.harness.shown import Table
from training.evaluate.presentation.content import chapters
from training.models.resnet import SmallResNet
from training.served.answers import open_pipeline


@pytest.fixture(scope="module")
def seams() -> Iterator[None]:
    with registered(FeatureNorm(), localisers=[Brightest()]):
        yield


@pytest.fixture(scope="module")
def bundle(seams: None, trained: SmallResNet, toy: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder = tmp_path_factory.mktemp("seams")
    model = {"model": SPEC.model_dump(mode="json")}
    plan = Plan(
        name="seams",
        version="1.0.0",
        training={"standard": model, "companion": model},
        fused=default_scores(companion=True),
        guard=Guard(score="companion_strict", share_below=0.2, share=0.9, knee=0.005),
        screened_by=["feature_norm"],
        localiser="brightest",
        samples=1,
        effort=Effort(tried=16, steps=2),
    )
    assemble(folder, plan, {"standard": trained, "companion": random_network(1)}, toy, Silent())
    return load_bundle(folder)


def test_the_manifest_has_what_they_state(bundle: Bundle) -> None:
    manifest = bundle.manifest
    assert manifest.scores == [*default_scores(companion=True)[:-1], "companion_strict", "feature_norm"]
    assert manifest.screen_scores == ["class_distance", "companion_margin", "feature_norm"]
    assert manifest.layer_scores == ["neuron_sensitivity", "feature_norm"]
    assert manifest.localiser == "brightest"
    assert set(manifest.titles) == set(manifest.meanings) == {*manifest.scores, "brightest"}
    assert (manifest.titles["feature_norm"], manifest.titles["brightest"]) == ("Feature norm", "Brightest window")
    assert manifest.meanings["feature_norm"] == FeatureNorm.meaning


def test_the_graph_computes_them(bundle: Bundle) -> None:
    pixels = pixels_of(6, SIDE, 0)
    out = open_pipeline(bundle).engine.run(pixels.numpy())
    roa, stands_out = Brightest().locate(pixels)
    np.testing.assert_array_equal(out.roa, roa.numpy())
    np.testing.assert_allclose(out.roa_score, stands_out.numpy(), rtol=1e-3)
    defence = load_defence(bundle)
    assert defence.score_names == tuple(bundle.manifest.scores)
    assert defence.localiser.name == "brightest"
    expected = defence(pixels, torch.zeros(6, SIDE, SIDE)).scores
    np.testing.assert_allclose(out.scores, expected.numpy(), rtol=1e-3, atol=1e-3)
    decisions = open_pipeline(bundle).decide_images(list(pixels.numpy()), explain=False)
    assert all(set(dict(decision.evidence)) == set(bundle.manifest.scores) for decision in decisions)


def test_card_and_console_read_their_titles(bundle: Bundle) -> None:
    rows = {row["name"]: row for row in detector_rows(bundle.manifest)}
    assert rows["feature_norm"] == {
        "kind": "score",
        "name": "feature_norm",
        "title": "Feature norm",
        "meaning": FeatureNorm.meaning,
        "fused": True,
        "guards": False,
    }
    assert (rows["companion_strict"]["fused"], rows["companion_strict"]["guards"]) == (False, True)
    card = {"detector": list(rows.values()), "checks": [], "samples": {}, "units": [], "settings": {}}
    every = [section for chapter in chapters(card, []) for section in chapter.sections]
    (section,) = [section for section in every if section.title == "What the defence looks at"]
    (table,) = [part for part in section.body if isinstance(part, Table)]
    shown = {row[1]: row for row in table.rows}
    assert shown["`feature_norm`"] == ("Feature norm", "`feature_norm`", "fused", FeatureNorm.meaning)
    assert shown["`brightest`"][:3] == ("Brightest window", "`brightest`", "region of attack")
    told = model_detail(open_pipeline(bundle), default=True).manifest
    assert told["titles"]["brightest"] == "Brightest window"
    assert told["meanings"]["feature_norm"] == FeatureNorm.meaning
    assert told["localiser"] == "brightest"


def test_a_bundle_whose_score_is_gone_is_still_served_and_says_what_is_missing(bundle: Bundle) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.delitem(__import__("training.defence.scores", fromlist=["SCORES"]).SCORES, "feature_norm")
        with pytest.raises(TrainingError, match="no score 'feature_norm'"):
            load_defence(bundle)
        open_pipeline(bundle).decide_images([np.zeros((SIDE, SIDE, 3), np.uint8)])


def test_a_recipe_names_scores_and_localiser(seams: None, tmp_path: Path) -> None:
    path = tmp_path / "bundle.yaml"
    recipe = {"name": "a", "version": "1.0.0", "standard": "s.yaml", "companion": "c.yaml"}
    path.write_text(yaml.safe_dump(recipe | {"localiser": "brightest"}))
    made = load_bundle_recipe(path)
    assert made.localiser == "brightest"
    assert made.fused == list(default_scores(companion=True))
    path.write_text(yaml.safe_dump(recipe | {"localiser": "luck"}))
    with pytest.raises(RecipeError, match="localiser: there is no 'luck'; there are texture_colour, brightest"):
        load_bundle_recipe(path)
    path.write_text(yaml.safe_dump(recipe | {"fused": ["margin_drop", "margin_drop"]}))
    with pytest.raises(RecipeError, match="named twice"):
        load_bundle_recipe(path)
