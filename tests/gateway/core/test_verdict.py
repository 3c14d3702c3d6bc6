from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.core.loading import load_bundle
from gateway.core.manifest import Guard
from gateway.core.verdict import Fusion, Judge, component_p, conformal_p, fisher, tail_p


def test_conformal_p_by_hand() -> None:
    benign = np.array([1.0, 2.0, 2.0, 3.0])
    p = conformal_p(benign, np.array([0.0, 2.0, 2.5, 3.0, 9.0]))
    np.testing.assert_allclose(p, [5 / 5, 4 / 5, 2 / 5, 2 / 5, 1 / 5])


def test_p_values_of_benign_scores_are_uniform() -> None:
    rng = np.random.default_rng(0)
    p = conformal_p(np.sort(rng.normal(size=2000)), rng.normal(size=20_000))
    edges = np.linspace(0.0, 1.0, 11)
    share = np.histogram(p, edges)[0] / len(p)
    np.testing.assert_allclose(share, 0.1, atol=0.02)


@pytest.mark.parametrize("alpha", [0.01, 0.05, 0.2])
def test_false_positive_rate_of_gaussian_scores_is_alpha(alpha: float) -> None:
    rng = np.random.default_rng(1)
    rates = [
        float((conformal_p(np.sort(rng.normal(size=999)), rng.normal(size=500)) <= alpha).mean()) for _ in range(200)
    ]
    # The rate of one calibration sample of n is Beta distributed around alpha; its mean over 200 samples is close.
    spread = np.sqrt(alpha * (1 - alpha) * (1 / 500 + 1 / 1000) / 200)
    assert abs(np.mean(rates) - alpha) < 4 * spread + 1e-3


def test_fused_p_values_stay_valid_for_dependent_scores() -> None:
    rng = np.random.default_rng(2)

    def scores(n: int) -> np.ndarray:
        shared = rng.normal(size=(n, 1))
        return shared + 0.3 * rng.normal(size=(n, 3))

    select = np.sort(scores(1000), axis=0)
    fused = np.sort(fisher(component_p(select, scores(1000))))
    p = conformal_p(fused, fisher(component_p(select, scores(10_000))))
    assert abs(float((p <= 0.05).mean()) - 0.05) < 0.025
    # Fisher's own chi-squared law would flag several times as many.
    assert float((fisher(component_p(select, scores(10_000))) > 12.592).mean()) > 0.08


def test_nan_scores_are_flagged_not_passed() -> None:
    assert conformal_p(np.arange(99.0), np.array([np.nan]))[0] == pytest.approx(0.01)


def test_judge_uses_the_cutoffs_of_the_bundle(bundle_folder: Path) -> None:
    bundle = load_bundle(bundle_folder)
    judge = Judge(bundle, bundle.calibration("cpu"))
    quiet, loud = judge.judge(np.array([[0.0, 0.0, 0.0], [1.0, 10.0, 1.0]]), np.zeros((2, 2)))
    assert (quiet.p_value, quiet.flagged, quiet.gated) == (1.0, False, False)
    assert loud.p_value == pytest.approx(2 / 401, rel=0.6)
    assert loud.flagged
    assert loud.gated
    assert set(loud.evidence) == {"neuron_sensitivity", "margin_drop", "unused"}


def test_judge_refuses_an_alpha_that_was_not_calibrated(bundle_folder: Path) -> None:
    bundle = load_bundle(bundle_folder)
    with pytest.raises(ValueError, match=r"0\.02 \(has 0\.01, 0\.05, 0\.1\)"):
        Judge(bundle, bundle.calibration("cpu"), alpha=0.02)


def test_tail_p_is_conformal_below_and_falls_on_above() -> None:
    benign = np.sort(np.random.default_rng(0).exponential(size=1000))
    below, beyond = np.linspace(0, benign[949], 50), benign[-1] + np.array([0.0, 1.0, 5.0])
    np.testing.assert_array_equal(tail_p(benign, below), conformal_p(benign, below))
    grid = tail_p(benign, np.linspace(0, 20, 500))
    assert (np.diff(grid) <= 0).all()
    assert (np.diff(tail_p(benign, beyond)) < 0).all()
    assert tail_p(benign, beyond)[1] == pytest.approx(np.exp(-beyond[1]), rel=1.0)


GUARDS = st.builds(
    Guard,
    score=st.just("c"),
    share_below=st.floats(0.05, 0.95),
    share=st.floats(0.05, 0.95),
    knee=st.floats(0.001, 0.2),
)
BENIGN = np.random.default_rng(3).normal(size=(800, 3))


@settings(deadline=None)
@given(GUARDS, st.floats(-6, 6), st.floats(-6, 6), st.floats(0.0005, 0.2), st.floats(0.01, 5))
def test_no_calm_score_pays_for_the_guards_objection(guard: Guard, a: float, b: float, level: float, by: float) -> None:
    """Beyond the guard's limit an image is at least as unusual as the level, whatever the other scores say."""
    fusion = Fusion.fit(BENIGN, ["a", "b", "c"], ["a", "b"], guard)
    _, objection = fusion.limits(level)
    loud, calm = np.array([[a, b, objection + by]]), np.array([[-6.0, -6.0, objection - by]])
    assert -fusion.statistic(loud)[0] <= level * (1 + 1e-9)
    assert -fusion.statistic(calm)[0] >= level * (1 - 1e-9)


def test_without_a_guard_calm_scores_do_pay() -> None:
    """What the guard is for: Fisher's sum lets two calm scores outweigh an objection that none of 800 images has."""
    fusion = Fusion.fit(BENIGN, ["a", "b", "c"], ["a", "b", "c"])
    guarded = Fusion.fit(
        BENIGN, ["a", "b", "c"], ["a", "b", "c"], Guard(score="c", share_below=0.5, share=0.5, knee=0.01)
    )
    attack = np.array([[-6.0, -6.0, 5.0]])
    assert -fusion.statistic(attack)[0] > 0.02
    assert -guarded.statistic(attack)[0] < 0.001


def test_guarded_p_values_stay_valid() -> None:
    rng = np.random.default_rng(5)

    def scores(n: int) -> np.ndarray:
        shared = rng.normal(size=(n, 1))
        return shared + 0.5 * rng.normal(size=(n, 3))

    fusion = Fusion.fit(
        scores(1000), ["a", "b", "c"], ["a", "b"], Guard(score="c", share_below=0.2, share=0.9, knee=0.005)
    )
    benign = np.sort(fusion.statistic(scores(2000)))
    p = conformal_p(benign, fusion.statistic(scores(20_000)))
    for alpha in (0.01, 0.05, 0.2):
        assert (p <= alpha).mean() == pytest.approx(alpha, abs=4 * np.sqrt(alpha * (1 - alpha) / 2000))


def test_the_composite_keeps_its_rate(bundle_folder: Path) -> None:
    """Screened images are never flagged; of the others as many as the cutoff allows among all."""
    bundle = load_bundle(bundle_folder)
    judge = Judge(bundle, bundle.calibration("cpu"))
    share = np.random.default_rng(9).uniform(0.0, 0.02, 20_000)
    scores = np.outer(share, [1.0, 10.0, 1.0])
    on = judge.screen(scores[:, :2])
    assert on.mean() == pytest.approx(0.2, abs=0.05)
    p = np.where(on, judge.p_values(scores, cascade=True), 1.0)
    for alpha in (0.01, 0.05, 0.1):
        cutoff = judge.cutoff(alpha, cascade=True)
        assert (p <= cutoff).mean() == pytest.approx(cutoff, abs=4 * np.sqrt(alpha / 400))
    flagged = [v.flagged for v in judge.judge(scores[:64], np.zeros((64, 2)), cascade=True)]
    assert flagged == (judge.p_values(scores[:64], cascade=True) <= judge.p_cutoff).tolist()
