"""Kinds of anomaly: the rule's arithmetic, p-values by group, and what a verdict states of them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from gateway.core.engine import Engine
from gateway.core.grouped import GroupedScores, group_weights
from gateway.core.kinds import kind_of, log_odds, reading_names
from gateway.core.loading import load_bundle, write_manifest
from gateway.core.manifest import Manifest
from gateway.core.pipeline import Pipeline
from gateway.core.rules import KindRule
from gateway.errors import BundleError
from tests.gateway.tiny import SCORES, clean_image, patched_image

READINGS = ["neuron_sensitivity", "companion_energy"]
# Unfamiliar are dark images, by the companion's energy; attacked are those with saturated pixels.
WEIGHTS = [[0.0, 0.0], [0.0, 4.0], [4.0, 0.0]]


def tell_apart(source: Path, folder: Path, *, n: int = 200, groups: int = 20) -> Path:
    """A copy in `folder` of the tiny bundle, with a rule."""
    shutil.copytree(source, folder)
    manifest = Manifest.model_validate_json((folder / "manifest.json").read_text("utf-8"))
    rng = np.random.default_rng(5)
    odds = np.sort(rng.normal(-3.0, 1.0, (n, 2)), axis=0)
    with np.load(folder / "calibration.npz", allow_pickle=False) as file:
        arrays = {name: file[name] for name in file.files}
    arrays |= {"cpu-fp32/kinds": odds, "cpu-fp32/kind_weights": np.full((n, 2), groups / n)}
    np.savez(folder / "calibration.npz", allow_pickle=False, **arrays)
    rule = KindRule(
        readings=READINGS,
        mean=[0.01, -4.72],
        std=[0.01, 0.5],
        weights=WEIGHTS,
        bias=[3.0, 0.0, 0.0],
        n=n,
        groups=groups,
    )
    calibration = manifest.calibrations[0].model_copy(update={"kinds": rule})
    write_manifest(folder, manifest.model_copy(update={"calibrations": [calibration]}))
    return folder


def opened(folder: Path) -> Pipeline:
    bundle = load_bundle(folder)
    return Pipeline.on(Engine.open(bundle, device="cpu", threads=1), bundle, alpha=0.05)


def test_the_kind_follows_the_two_p_values() -> None:
    assert kind_of(0.5, 0.5, flagged=False, alpha=0.05) == "ordinary"
    assert kind_of(0.05, 0.5, flagged=False, alpha=0.05) == "unfamiliar"
    assert kind_of(0.5, 0.01, flagged=False, alpha=0.05) == "attacked"
    assert kind_of(0.01, 0.01, flagged=True, alpha=0.05) == "both"


@pytest.mark.parametrize(
    ("p", "kind"), [((0.2, 0.4), "unfamiliar"), ((0.4, 0.2), "attacked"), ((0.3, 0.3), "attacked")]
)
def test_a_flagged_image_is_never_ordinary(p: tuple[float, float], kind: str) -> None:
    assert kind_of(*p, flagged=True, alpha=0.05) == kind


def test_log_odds_are_those_of_the_softmax() -> None:
    logits = np.random.default_rng(0).normal(size=(5, 3))
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    np.testing.assert_allclose(log_odds(logits), np.log(p[:, 1:] / (1 - p[:, 1:])))


def test_p_values_by_group_are_the_ordinary_ones_where_every_image_is_its_own() -> None:
    scores = np.sort(np.random.default_rng(1).normal(size=99))
    asked = np.array([scores[0] - 1, scores[49], scores[98], scores[98] + 1, np.nan])
    np.testing.assert_allclose(GroupedScores(scores, np.ones(99), 99).p_values(asked), [1.0, 0.51, 0.02, 0.01, 0.01])


def test_p_values_by_group_are_the_mean_over_one_image_drawn_of_each() -> None:
    rng = np.random.default_rng(2)
    groups = rng.integers(0, 7, 60)
    scores = rng.normal(size=60) + groups
    order = np.argsort(scores)
    grouped = GroupedScores(scores[order], group_weights(groups)[order], len(np.unique(groups)))
    asked = np.array([-2.0, 1.0, 4.0, 9.0])
    by_hand = [
        (1 + sum((scores[groups == g] >= s).mean() for g in np.unique(groups))) / (len(np.unique(groups)) + 1)
        for s in asked
    ]
    np.testing.assert_allclose(grouped.p_values(asked), by_hand)


def test_p_values_by_group_stay_valid_where_images_of_a_group_are_copies() -> None:
    rng = np.random.default_rng(3)
    rates = []
    for _ in range(300):
        centres = rng.normal(size=40)
        groups = np.repeat(np.arange(40), 30)
        scores = centres[groups] + 0.1 * rng.normal(size=1200)
        order = np.argsort(scores)
        grouped = GroupedScores(scores[order], group_weights(groups)[order], 40)
        rates.append((grouped.p_values(rng.normal(size=200) + 0.1 * rng.normal(size=200)) <= 0.1).mean())
    assert np.mean(rates) <= 0.1 + 3 * np.std(rates) / np.sqrt(len(rates))


@pytest.mark.parametrize("groups", [400, 20])
def test_above_the_level_and_only_there_inputs_have_the_p_value_or_less(groups: int) -> None:
    scores = np.sort(np.random.default_rng(4).normal(size=400))
    benign = GroupedScores(scores, np.full(400, groups / 400), groups)
    level = benign.level(0.1)
    at, above = benign.p_values(np.array([level, np.nextafter(level, np.inf)]))
    assert above <= 0.1 * (1 + 1e-12) < at
    assert benign.level(0.5 / (groups + 1)) == np.inf


def test_a_bundle_without_a_rule_states_no_kind(bundle_folder: Path) -> None:
    (decision,) = opened(bundle_folder).decide_images([patched_image()])
    verdict = decision.raw.verdict
    assert (verdict.kind, verdict.p_unfamiliar, verdict.p_attacked) == (None, None, None)


def test_verdicts_name_kinds_and_flags_stay(bundle_folder: Path, tmp_path: Path) -> None:
    before = opened(bundle_folder).decide_images([clean_image(), patched_image(), clean_image((0, 0, 0))])
    after = opened(tell_apart(bundle_folder, tmp_path / "told")).decide_images(
        [clean_image(), patched_image(), clean_image((0, 0, 0))]
    )
    assert [d.raw.verdict.kind for d in after] == ["ordinary", "attacked", "unfamiliar"]
    for old, new in zip(before, after, strict=True):
        assert (new.raw.verdict.p_value, new.flagged) == (old.raw.verdict.p_value, old.flagged)
        assert 0 < min(new.raw.verdict.p_unfamiliar or 0, new.raw.verdict.p_attacked or 0) <= 1


def test_what_the_screen_lets_through_has_no_kind(bundle_folder: Path, tmp_path: Path) -> None:
    (decision,) = opened(tell_apart(bundle_folder, tmp_path / "told")).decide_images(
        [clean_image()], explain=False, screening="on"
    )
    assert decision.stage == "screen"
    assert decision.raw.verdict.kind is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"std": [1.0]}, "a number for each reading"),
        ({"std": [1.0, 0.0]}, "greater than 0"),
        ({"readings": ["neuron_sensitivity", "temper"]}, "temper"),
        ({"n": 199}, "kinds"),
    ],
)
def test_an_unsound_rule_is_refused(
    bundle_folder: Path, tmp_path: Path, change: dict[str, object], message: str
) -> None:
    folder = tell_apart(bundle_folder, tmp_path / "told")
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text("utf-8"))
    manifest["calibrations"][0]["kinds"].update(change)
    path.write_text(json.dumps(manifest), "utf-8")
    with pytest.raises(BundleError, match=message):
        load_bundle(folder)


def test_names_of_readings() -> None:
    assert reading_names(SCORES, companion=False) == [*SCORES, "window", "energy", "doubt"]
