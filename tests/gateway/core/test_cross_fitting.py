"""p-values whose components are ranked among the very images that calibrate their fusion: they stay valid.

The argument (docs/methods.md, "Calibration") is checked on random exchangeable scores of many kinds and few images.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import pytest

from gateway.core.manifest import Guard
from gateway.core.verdict import Fusion, component_p, conformal_p, fisher, own_p

NAMES = ["a", "b", "c", "g"]
GUARD = Guard(score="g", share_below=0.2, share=0.9, knee=0.005)
Kind = Literal["independent", "alike", "opposed", "heavy", "ties"]
KINDS: tuple[Kind, ...] = ("independent", "alike", "opposed", "heavy", "ties")


def draw(kind: Kind, n: int, rng: np.random.Generator) -> np.ndarray:
    """Scores (n, 4) of one law."""
    own, common = rng.standard_normal((n, len(NAMES))), rng.standard_normal((n, 1))
    if kind == "opposed":
        own[:, 3] = -own[:, 0]
    return {
        "independent": own,
        "alike": common + 0.3 * own,
        "opposed": own,
        "heavy": np.exp(2 * common + own),
        "ties": np.round(common + own),
    }[kind]


@pytest.mark.parametrize("guard", [None, GUARD], ids=["fisher", "guarded"])
@pytest.mark.parametrize("n", [20, 50, 200])
@pytest.mark.parametrize("kind", KINDS)
def test_no_more_than_a_share_p_of_benign_inputs_have_p_or_less(kind: Kind, n: int, guard: Guard | None) -> None:
    rng = np.random.default_rng(7)
    fused = NAMES[:3] if guard else NAMES
    counts = np.array([1, 2, 3, max(4, round(0.05 * (n + 1))), round(0.1 * (n + 1)), round(0.5 * (n + 1))])
    rates = []
    for _ in range(400 if n < 200 else 200):
        benign, tails = draw(kind, n, rng), draw(kind, max(20, n // 2), rng)
        fusion = Fusion.fit(benign, NAMES, fused, guard, tails=tails if guard else None)
        p = conformal_p(np.sort(fusion.own(benign)), fusion.statistic(draw(kind, 100, rng)))
        rates.append((p[:, None] <= (counts + 0.01) / (n + 1)).mean(0))
    mean, error = np.mean(rates, 0), np.std(rates, 0) / np.sqrt(len(rates))
    assert (mean <= counts / (n + 1) + 3.5 * error).all()


def test_the_exact_transductive_p_value_is_at_most_ours() -> None:
    rng = np.random.default_rng(0)
    for _ in range(200):
        benign, given = draw("alike", 30, rng), 1.5 * draw("alike", 1, rng)
        fusion = Fusion.fit(benign, NAMES, NAMES)
        ours = conformal_p(np.sort(fusion.own(benign)), fusion.statistic(given))[0]
        bag = np.concatenate([benign, given])
        statistic = fisher(own_p(bag) * (len(bag) + 1) / len(bag))  # ranks of n + 1 images among themselves
        assert (statistic >= statistic[-1] - 1e-9).mean() <= ours + 1e-12


@pytest.mark.parametrize("guard", [None, GUARD], ids=["fisher", "guarded"])
def test_an_input_beyond_all_has_the_smallest_p_even_where_one_image_tops_all(guard: Guard | None) -> None:
    benign = draw("independent", 60, np.random.default_rng(0))
    benign[17] = 9.0
    fusion = Fusion.fit(benign, NAMES, NAMES[:3] if guard else NAMES, guard, tails=benign[:30] if guard else None)
    fused = np.sort(fusion.own(benign))
    assert conformal_p(fused, np.array([fusion.beyond]))[0] == pytest.approx(1 / 61)
    assert conformal_p(fused, fusion.statistic(np.full((1, 4), 9.5)))[0] == pytest.approx(1 / 61)
    assert conformal_p(fused, fusion.statistic(np.full((1, 4), 8.5)))[0] == pytest.approx(2 / 61)


def test_own_p_values_count_the_image_itself_and_no_other_input() -> None:
    benign = np.array([[3.0], [1.0], [2.0], [2.0]])
    assert (5 * own_p(benign)[:, 0]).round().tolist() == [1, 4, 3, 3]
    np.testing.assert_allclose(component_p(np.sort(benign, 0), benign)[:, 0] - own_p(benign)[:, 0], 1 / 5)
