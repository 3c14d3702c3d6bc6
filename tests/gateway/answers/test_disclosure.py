"""Release times at disclosure `label`: do they tell which path an image took?"""

from __future__ import annotations

import math

import numpy as np
import pytest

from gateway.answers.disclosure import coarse_p_value
from gateway.answers.latency import LatencyQuantum


def released(quantum: LatencyQuantum, elapsed: float) -> float:
    return elapsed + quantum.wait(elapsed)


def ks_distance(a: np.ndarray, b: np.ndarray) -> float:
    """Kolmogorov-Smirnov distance: the best threshold's advantage in telling a from b."""
    grid = np.concatenate([a, b])
    return float(max(abs((a <= x).mean() - (b <= x).mean()) for x in grid))


@pytest.mark.parametrize("scale", [1.0, 20.0], ids=["shipped model", "slow model"])
def test_fast_and_slow_paths_are_released_alike(scale: float) -> None:
    rng = np.random.default_rng(0)
    quantum = LatencyQuantum(0.1)
    median = {"screen": 0.003, "verdict": 0.008, "neutralized": 0.015}
    times: dict[str, list[float]] = {path: [] for path in median}
    raw: dict[str, list[float]] = {path: [] for path in median}
    for i in range(3000):
        path = str(rng.choice(list(median), p=[0.6, 0.3, 0.1]))
        elapsed = scale * median[path] * float(rng.lognormal(0.0, 0.25))
        quantum.note(path, elapsed)
        if i >= 100:
            raw[path].append(elapsed)
            times[path].append(released(quantum, elapsed) + float(rng.normal(0.0, 0.0002)))
    observed = {path: np.array(values) for path, values in times.items()}
    for slow in ("verdict", "neutralized"):
        a, b = observed["screen"], observed[slow]
        critical = 1.63 * math.sqrt((len(a) + len(b)) / (len(a) * len(b)))  # 1 % level
        assert ks_distance(np.array(raw["screen"]), np.array(raw[slow])) > 0.9
        assert ks_distance(a, b) < critical


def test_the_quantum_follows_the_load_and_comes_back() -> None:
    quantum = LatencyQuantum(0.1)
    assert released(quantum, 0.03) == pytest.approx(0.1)
    for _ in range(10):
        quantum.note("verdict", 0.3)  # a neutralised image would take 0.6
    assert quantum.seconds == pytest.approx(0.8)
    assert released(quantum, 0.1) == released(quantum, 0.7) == pytest.approx(0.8)
    assert released(quantum, 0.9) == pytest.approx(1.6)
    for _ in range(300):
        quantum.note("verdict", 0.01)
    assert quantum.seconds == pytest.approx(0.1)


def test_a_path_that_is_rarely_taken_does_not_hold_the_quantum_up() -> None:
    now = 0.0
    quantum = LatencyQuantum(0.1, lambda: now)
    quantum.note("neutralized", 3.0)  # the machine was busy, and no such image comes again
    assert quantum.seconds == pytest.approx(6.4)
    now = 59.0
    quantum.note("verdict", 0.01)
    assert quantum.seconds == pytest.approx(6.4)
    now = 61.0
    quantum.note("verdict", 0.01)
    assert quantum.seconds == pytest.approx(0.1)


def test_copies_in_a_batch_do_not_add_up_what_one_hides() -> None:
    quantum = LatencyQuantum(0.1)
    for _ in range(50):
        quantum.note("verdict", 0.008)
    fast, slow = (64 * seconds for seconds in (0.008, 0.016))
    assert fast + quantum.wait(fast, 64) == pytest.approx(slow + quantum.wait(slow, 64))


def test_p_values_have_two_digits() -> None:
    assert [coarse_p_value(p) for p in (0.000234567, 0.0151, 1.0, 0.999)] == [0.00023, 0.015, 1.0, 1.0]
