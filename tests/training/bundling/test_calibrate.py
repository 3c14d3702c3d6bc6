from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import norm

from gateway.core.manifest import Guard
from gateway.core.outputs import VerdictOutputs
from gateway.core.verdict import Fusion, conformal_p, fisher, own_p, tail_p
from training.bundling.calibrate import ALPHAS, BenignScores, calibrate, design_effect, fit_recovery, p_cutoff
from training.errors import TrainingError

NAMES = ("a", "b", "c")


def brute_force(n: int, alpha: float, confidence: float) -> float:
    """P(rate <= alpha) with k benign scores above is P(at least k + 1 of n draws fall in the top alpha)."""
    below, k = 0.0, -1
    for i in range(n):
        below += math.comb(n, i) * alpha**i * (1 - alpha) ** (n - i)  # P(at most i)
        if 1 - below < confidence:
            break
        k = i
    return (1 + max(k, 0)) / (n + 1)


@pytest.mark.parametrize("n", [20, 99, 300, 1000])
@pytest.mark.parametrize("alpha", [0.01, 0.05, 0.2])
@pytest.mark.parametrize("confidence", [0.5, 0.9, 0.99])
def test_cutoff_is_the_beta_bound(n: int, alpha: float, confidence: float) -> None:
    assert p_cutoff(n, n, alpha=alpha, confidence=confidence) == pytest.approx(brute_force(n, alpha, confidence))


def test_cutoff_is_monotone() -> None:
    by_alpha = [p_cutoff(1000, 1000, alpha=a) for a in ALPHAS]
    assert by_alpha == sorted(by_alpha)
    assert all(p < a for p, a in zip(by_alpha[1:], ALPHAS[1:], strict=True))
    by_effective = [p_cutoff(1000, e, alpha=0.05) for e in (100, 300, 1000)]
    assert by_effective == sorted(by_effective)
    assert by_effective[0] < by_effective[-1]
    by_confidence = [p_cutoff(1000, 1000, alpha=0.05, confidence=c) for c in (0.5, 0.9, 0.99)]
    assert by_confidence == sorted(by_confidence, reverse=True)


def test_too_few_images_flag_what_exceeds_them_all() -> None:
    assert p_cutoff(20, 20, alpha=0.005) == pytest.approx(1 / 21)


@pytest.mark.parametrize("alpha", [0.02, 0.05])
def test_false_positive_rate_holds_with_the_stated_confidence(alpha: float) -> None:
    """2,000 calibrations on independent Gaussian scores: the true rate exceeds alpha in about a tenth at most."""
    n, draws = 500, 2000
    rng = np.random.default_rng(0)
    cutoff = p_cutoff(n, n, alpha=alpha, confidence=0.9)
    benign = np.sort(rng.standard_normal((draws, n)), axis=1)
    k = round(cutoff * (n + 1)) - 1  # flagged: at most k benign scores are at least as large
    threshold = benign[:, n - k - 1]
    probe = np.array([threshold[0] - 1e-6, threshold[0] + 1e-6])
    assert (conformal_p(benign[0], probe) <= cutoff).tolist() == [False, True]
    held = (norm.sf(threshold) <= alpha).mean()
    assert held > 0.9 - 3 * math.sqrt(0.09 / draws)
    assert held < 0.98  # and does not give away more than the step from one k to the next


def test_design_effect_of_independent_and_of_clustered_scores() -> None:
    rng = np.random.default_rng(0)
    independent = [design_effect(rng.standard_normal(2000), np.arange(2000), alpha=0.05, seed=s) for s in range(5)]
    assert np.mean(independent) == pytest.approx(1, abs=0.1)
    groups = np.repeat(np.arange(200), 10)
    shuffled = rng.standard_normal(2000)
    assert design_effect(shuffled, groups, alpha=0.05, seed=0) == pytest.approx(1, abs=0.35)
    copies = np.repeat(rng.standard_normal(200), 10)
    assert design_effect(copies, groups, alpha=0.05, seed=0) == pytest.approx(10, rel=0.25)
    alike = np.repeat(rng.standard_normal(200), 10) + 0.5 * rng.standard_normal(2000)
    assert 2 < design_effect(alike, groups, alpha=0.05, seed=0) < 10


def test_design_effect_is_repeatable_and_blind_to_group_names() -> None:
    rng = np.random.default_rng(0)
    statistic, groups = rng.standard_normal(300), np.repeat(np.arange(30), 10)
    assert design_effect(statistic, groups, alpha=0.05, seed=3) == design_effect(statistic, groups, alpha=0.05, seed=3)
    assert design_effect(statistic, groups * 1000 - 7, alpha=0.05, seed=3) == design_effect(
        statistic, groups, alpha=0.05, seed=3
    )


def outputs(n: int, seed: int) -> VerdictOutputs:
    rng = np.random.default_rng(seed)
    scores = rng.standard_normal((n, len(NAMES))).astype(np.float32)
    return VerdictOutputs(
        **{name: np.zeros((n, 1), np.float32) for name in ("roi", "roa", "neutral_pixels")},
        logits=rng.standard_normal((n, 3)).astype(np.float32),
        roa_score=np.arange(n, dtype=np.float32),
        layer_deviation=rng.standard_normal((n, 4)).astype(np.float32),
        scores=scores,
    )


def benign(select: VerdictOutputs, calibrated: VerdictOutputs, groups: np.ndarray) -> BenignScores:
    """Labels are the first answers, and hiding a region changes none."""
    return seen(select, calibrated, groups, calibrated.logits.argmax(1), calibrated.logits)


def seen(
    select: VerdictOutputs, calibrated: VerdictOutputs, groups: np.ndarray, labels: np.ndarray, after: np.ndarray
) -> BenignScores:
    return BenignScores(
        calibrated.scores,
        calibrated.layer_deviation,
        calibrated.roa_score,
        calibrated.logits.argmax(1),
        groups,
        labels,
        lambda rows: after[rows],
        select.scores,
    )


def entry(scores: BenignScores, out: Path, **changes):
    settings: dict[str, Any] = {
        "names": NAMES,
        "fused": ["a", "c"],
        "provider": "cpu",
        "graphs_sha256": "0" * 64,
        "out": out,
        "counted": "images",
    }
    return calibrate(scores, **(settings | changes))


def test_calibration_entry_and_its_arrays(tmp_path: Path) -> None:
    scores = benign(outputs(200, 0), outputs(400, 1), np.arange(400))
    made = entry(scores, tmp_path)
    assert (made.n, made.groups, made.n_select, made.n_tails, made.fused) == (400, 400, 400, None, ["a", "c"])
    assert made.smallest_p == pytest.approx(1 / 401)
    assert [c.alpha for c in made.cutoffs] == list(ALPHAS)
    for cutoff in made.cutoffs:
        assert cutoff.p_cutoff == p_cutoff(400, 400 / made.design_effect, alpha=cutoff.alpha)
    assert made.roa_threshold == pytest.approx(np.quantile(np.arange(400), 0.999))
    assert made.recovery is not None
    assert made.recovery.contrast_mean == pytest.approx(np.quantile(np.arange(400), 0.5), abs=100)
    with np.load(tmp_path / "calibration.npz", allow_pickle=False) as file:
        arrays = dict(file)
    assert sorted(arrays) == [f"cpu-fp32/{name}" for name in ("components", "fisher", "fused", "layers")]
    assert np.array_equal(arrays["cpu-fp32/components"], np.sort(scores.scores.astype(np.float64), axis=0))
    statistic = fisher(own_p(scores.scores[:, [0, 2]].astype(np.float64)))
    np.testing.assert_allclose(arrays["cpu-fp32/fisher"], np.sort(statistic), rtol=1e-8)
    np.testing.assert_allclose(arrays["cpu-fp32/fused"], np.sort(-tail_p(np.sort(statistic), statistic)), rtol=1e-6)
    assert arrays["cpu-fp32/layers"].shape == (400, 4)


def test_a_guards_tails_are_of_the_select_split(tmp_path: Path) -> None:
    scores = benign(outputs(200, 0), outputs(400, 1), np.arange(400))
    guard = Guard(score="b", share_below=0.2, share=0.9, knee=0.005)
    made = entry(scores, tmp_path, guard=guard)
    assert (made.n_select, made.n_tails) == (400, 200)
    assert made.smallest_p == pytest.approx(1 / 401)
    with np.load(tmp_path / "calibration.npz", allow_pickle=False) as file:
        assert scores.tails is not None
        assert np.array_equal(file["cpu-fp32/guard"], np.sort(scores.tails[:, 1].astype(np.float64)))
        assert len(file["cpu-fp32/fisher"]) == 200


def test_fused_p_values_of_benign_images_are_uniform() -> None:
    rng = np.random.default_rng(0)
    select, calibrate_, fresh = (rng.standard_normal((n, 2)) @ [[1, 0.8], [0, 0.6]] for n in (2000, 2000, 4000))
    fusion = Fusion.fit(select, ["a", "b"], ["a", "b"], Guard(score="a", share_below=0.5, share=0.7, knee=0.01))
    benign = np.sort(fusion.statistic(calibrate_))
    p = conformal_p(benign, fusion.statistic(fresh))
    for level in (0.01, 0.05, 0.2, 0.5):
        assert (p <= level).mean() == pytest.approx(
            level, abs=4 * math.sqrt(level * (1 - level) * (1 / 4000 + 1 / 2000))
        )
    assert (conformal_p(benign, fusion.statistic(fresh + 6)) < 0.01).mean() > 0.99


def test_clustered_calibration_lowers_the_cutoffs(tmp_path: Path) -> None:
    once = outputs(40, 1)
    copies = replace(once, **{k: np.repeat(v, 10, axis=0) for k, v in once.arrays().items()})
    alone = entry(benign(outputs(200, 0), copies, np.arange(400)), tmp_path)
    grouped = entry(benign(outputs(200, 0), copies, np.repeat(np.arange(40), 10)), tmp_path)
    assert grouped.groups == 40
    assert grouped.design_effect > 3 * alone.design_effect
    assert grouped.cutoffs[-1].p_cutoff < alone.cutoffs[-1].p_cutoff


def test_p_values_of_groups_where_there_are_enough(tmp_path: Path) -> None:
    once = outputs(250, 1)
    copies = replace(once, **{k: np.repeat(v, 10, axis=0) for k, v in once.arrays().items()})
    scores = benign(outputs(200, 0), copies, np.repeat(np.arange(250), 10))
    made = entry(scores, tmp_path, counted=None, screened_by=["a"])
    assert made.counted == "groups"
    assert made.smallest_p == pytest.approx(1 / 251)
    assert [(c.alpha, c.p_cutoff, c.confidence) for c in made.cutoffs] == [(a, a, None) for a in ALPHAS]
    assert made.cascade is not None
    with np.load(tmp_path / "calibration.npz", allow_pickle=False) as file:
        arrays = {name.removeprefix("cpu-fp32/"): file[name] for name in file.files}
    np.testing.assert_allclose(arrays["fused_weights"], 0.1)
    assert arrays["cascade_weights"].shape == (made.cascade.n_on,)
    few = benign(outputs(200, 0), copies, np.repeat(np.arange(50), 50))
    assert entry(few, tmp_path, counted=None).counted == "images"


@pytest.mark.parametrize(
    ("select", "images", "groups"), [(200, 19, 19), (19, 200, 200), (200, 200, 1)], ids=["images", "select", "groups"]
)
def test_too_little_to_calibrate_on(tmp_path: Path, select: int, images: int, groups: int) -> None:
    scores = benign(outputs(select, 0), outputs(images, 1), np.arange(images) % groups)
    guard = Guard(score="b", share_below=0.2, share=0.9, knee=0.005)
    with pytest.raises(TrainingError, match="20 each, in 2 groups, are needed"):
        entry(scores, tmp_path, guard=guard)
    assert not (tmp_path / "calibration.npz").exists()


def test_the_cascade_sends_its_share_on_and_keeps_the_rate(tmp_path: Path) -> None:
    scores = benign(outputs(500, 0), outputs(2000, 1), np.arange(2000))
    made = entry(scores, tmp_path, screened_by=["a", "b"], goes_on=0.13)
    cascade = made.cascade
    assert cascade is not None
    assert cascade.goes_on == pytest.approx(0.13, abs=0.002)
    with np.load(tmp_path / "calibration.npz", allow_pickle=False) as file:
        on, fused = file["cpu-fp32/cascade"], file["cpu-fp32/fused"]
    assert len(on) == cascade.n_on == round(cascade.goes_on * 2000)
    assert set(on) <= set(fused)
    # An image that goes on is less common than among all: no p-value is larger than without the screen.
    p = (1 + len(on) - np.searchsorted(on, fused)) / 2001
    assert (p <= conformal_p(fused, fused)).all()


def test_recovery_keeps_to_what_may_be_lost() -> None:
    contrast, clear = np.array([5.0, 4, 3, 2, 1]), np.array([9.0, 7, 5, 3, 1])
    lost = np.array([0, 1, -1, 1, 1])

    def threshold(allowed: int, lost: np.ndarray = lost) -> float | None:
        rule = fit_recovery(contrast, clear, lost, allowed=allowed)
        return None if rule is None else rule.threshold

    strength = (contrast - 3) / contrast.std() + (clear - 5) / clear.std()
    assert [threshold(allowed) for allowed in (2, 1, 0)] == pytest.approx([strength[4], strength[3], strength[2]])
    assert threshold(0, np.ones(5, int)) is None
    assert fit_recovery(contrast[:1], clear[:1], lost[:1], allowed=1) is None


def test_recovery_hears_the_companion_where_the_label_changes() -> None:
    contrast = clear = np.array([0, 0, 0, 1, 1.1, 1.1])
    lost = np.array([0, 0, 0, 0, 1, 1])
    alone = fit_recovery(contrast, clear, lost, allowed=0)
    assert alone is None  # what stands out most is what loses
    prefers = np.array([0, 0, 0, 3.0, -9, -9])
    rule = fit_recovery(contrast, clear, lost, prefers, allowed=0)
    assert rule is not None
    assert rule.preference_rms == pytest.approx(np.sqrt((9 + 81 + 81) / 3))
    strength = rule.strength(contrast, clear, prefers)
    assert (strength >= rule.threshold).tolist() == [False, False, False, True, False, False]
    unchanged = fit_recovery(contrast, clear, np.zeros(6), np.zeros(6), allowed=0)
    assert unchanged is not None
    assert unchanged.preference_rms is None


def test_recovery_counts_right_answers_that_hiding_the_region_takes_or_gives(tmp_path: Path) -> None:
    calibrated = outputs(400, 1)
    first = calibrated.logits.argmax(1)

    def rule(labels: np.ndarray, after: np.ndarray) -> float:
        logits = 3.0 * np.eye(3)[after]
        made = entry(seen(outputs(200, 0), calibrated, np.arange(400), labels, logits), tmp_path)
        return np.inf if made.recovery is None else made.recovery.threshold

    spoilt, mended = (first + 1) % 3, first
    # Of 400 one may be lost for the share to be at most 1 % for sure: the one whose window stands out most.
    assert rule(first, spoilt) > rule(spoilt, mended - 3)
    assert rule(first, first) == rule(spoilt, first)
