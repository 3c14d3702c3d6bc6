"""What p-values mean by rule: scales by class, and the figures of a rule."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from gateway.core.engine import Engine
from gateway.core.loading import load_bundle
from gateway.core.pipeline import Pipeline
from studies.by_class import ByClass, exponent
from studies.honest import Looked, look, measure, recalibrated, rules
from tests.gateway.tiny import SCORES, clean_image, patched_image, write_bundle
from training.data.dataset import Dataset, Split


def test_exponents_of_levels() -> None:
    np.testing.assert_allclose(exponent(np.array([-1.0, -np.exp(-3.0), -1.5])), [0.0, 3.0, 0.0])


def made_up(hard: float, *, tracks: int = 400, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Exponents, classes and groups of tracks of five frames; class 1 has `hard` times the exponents of the others."""
    rng = np.random.default_rng(seed)
    groups = np.repeat(np.arange(tracks), 5)
    classes = groups % 4
    return rng.exponential(np.where(classes == 1, hard, 1.0)), classes, groups


def test_a_class_that_is_harder_has_a_larger_scale_and_then_the_same_rate() -> None:
    exponents, classes, groups = made_up(3.0)
    rule = ByClass.fit(exponents, classes, groups, classes=4)
    scales = rule.scales()
    assert scales[1] / scales[0] == pytest.approx(3.0, rel=0.35)
    fresh, answers, _ = made_up(3.0, seed=1)
    p = rule.p_values(fresh, answers)
    for k in range(4):
        assert (p[answers == k] <= 0.1).mean() == pytest.approx(0.1, abs=0.05)
    assert (p <= 0.1).mean() == pytest.approx(0.1, abs=0.03)


def test_classes_that_are_alike_share_a_scale() -> None:
    rule = ByClass.fit(*made_up(1.0), classes=4)
    np.testing.assert_allclose(rule.scales(), 1.0, atol=0.15)
    assert rule.strength > 8


def test_a_class_without_groups_has_the_common_scale() -> None:
    rule = ByClass.fit(*made_up(2.0), classes=5)
    assert rule.scales()[4] == pytest.approx(1.0)


def test_the_figures_of_a_rule_by_hand() -> None:
    p = np.concatenate([np.full(12, 0.004), np.full(48, 0.3), np.full(60, 0.6), np.full(10, 0.001)])
    labels = np.repeat([0, 1, 2], [60, 60, 10])
    test = Looked(np.zeros((130, 1)), labels, labels, np.arange(130) // 10)
    found = measure(p, lambda alpha: alpha / 2, test, ["a", "b", "c"])
    assert found["0.01"]["p_at_most_alpha"][0] == pytest.approx(22 / 130)
    assert found["0.005"]["flagged"][0] == pytest.approx(10 / 130)
    assert (found["0.01"]["worst_class"], found["0.01"]["worst_share"]) == ("a", 0.2)  # class c has too few images
    assert found["0.01"]["classes_above_4_alpha"] == 1


def test_scores_are_kept_and_every_rule_flags_what_is_beyond_all(tmp_path: Path) -> None:
    bundle = load_bundle(write_bundle(tmp_path / "tiny"))
    engine = Engine.open(bundle, device="cpu", threads=1)
    images = np.stack([clean_image(), patched_image()])
    split = Split(images, np.array([0, 0]), np.arange(2))
    first = look(engine, bundle, split, "few", tmp_path, lambda *_: None)
    again = look(engine, bundle, split, "few", tmp_path, lambda *_: None)
    np.testing.assert_array_equal(first.scores, again.scores)
    rng = np.random.default_rng(0)

    def benign(n: int) -> Looked:
        share = rng.uniform(0.0, 0.02, n)
        scores = np.outer(share, [1.0, 10.0, 1.0])[:, : len(SCORES)]
        return Looked(scores, np.zeros(n, int), np.zeros(n, int), np.arange(n) // 2)

    for name, (p_values, cutoff) in rules(bundle, benign(200), benign(400)).items():
        calm, loud = p_values(first)
        assert loud <= cutoff(0.01) < calm, name


def test_the_bundle_that_counts_groups_is_sound_and_the_old_one_stays(tmp_path: Path) -> None:
    bundle = load_bundle(write_bundle(tmp_path / "tiny"))
    engine = Engine.open(bundle, device="cpu", threads=1)
    rng = np.random.default_rng(0)

    def split(n: int) -> Split:
        images = np.stack([clean_image((int(rng.integers(60, 180)), 0, 0)) for _ in range(n)])
        for image in images:
            rows = rng.integers(0, 16, (int(rng.integers(0, 26)), 2))
            image[rows[:, 0], rows[:, 1]] = (255, 0, 0)
        return Split(images, np.zeros(n, np.int64), np.arange(n) // 2)

    none = split(1).take(np.arange(0))
    data = Dataset("made up", list(bundle.manifest.classes), none, split(60), split(500), none)
    made = recalibrated(bundle, engine, data, tmp_path / "new", version="1.0.0-groups", seed=0)
    assert (made.counted, made.groups, made.n) == ("groups", 250, 500)
    assert {(c.alpha, c.p_cutoff) for c in made.cutoffs} >= {(0.01, 0.01), (0.05, 0.05)}
    new = load_bundle(tmp_path / "new")
    pipeline = Pipeline.on(Engine.open(new, device="cpu", threads=1), new)
    calm, loud = pipeline.decide_images([clean_image(), patched_image()])
    assert loud.flagged
    assert not calm.flagged
    assert pipeline.judge.level(0.01) < pipeline.judge.level(0.05)
    (screened,) = pipeline.decide_images([patched_image()], explain=False, screening="on")
    assert screened.stage == "verdict"
    assert screened.flagged
    assert load_bundle(bundle.path).calibration("cpu", "fp32").counted == "images"
