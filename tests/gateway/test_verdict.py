from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from gateway.bundle import load_bundle
from gateway.verdict import Judge, component_p, conformal_p, fisher


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
