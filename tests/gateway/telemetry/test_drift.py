"""The watch on drift: what it bets against, when it alarms, and that it forgets."""

from __future__ import annotations

import math
import random

import pytest
from prometheus_client import REGISTRY

from gateway.core.pipeline import Pipeline
from gateway.telemetry import drift, metrics
from gateway.telemetry.drift import DriftWatch, DriftWatches, upper_bound
from tests.gateway.tiny import clean_image


def alarm(watch: DriftWatch, draw: random.Random, power: float, n: int) -> int | None:
    """After how many p-values u ** power it alarms; None if after none of `n`."""
    for i in range(n):
        watch.note(max(draw.random(), 1e-9) ** power)
        if watch.evidence >= 0:
            return i + 1
    return None


def test_the_bound_is_chernoffs() -> None:
    bound = upper_bound(0.1, 234, 0.001)
    divergence = 0.1 * math.log(0.1 / bound) + 0.9 * math.log(0.9 / (1 - bound))
    assert 234 * divergence == pytest.approx(-math.log(0.001))
    assert 0.1 < upper_bound(0.1, 10_000, 0.001) < bound < upper_bound(0.1, 20, 0.001) < 1


def test_uniform_p_values_raise_no_alarm() -> None:
    assert all(alarm(DriftWatch(234), random.Random(seed), 1.0, 5000) is None for seed in range(20))


def test_p_values_of_a_calibration_that_is_off_by_its_own_noise_raise_no_alarm() -> None:
    """P(p <= 0.1) = 0.134, as shipped gtsrb has it on all test images: within what 234 groups allow."""
    power = math.log(0.1) / math.log(0.134)
    assert all(alarm(DriftWatch(234), random.Random(seed), power, 5000) is None for seed in range(10))


@pytest.mark.parametrize("power", [2.2, 0.35], ids=["harder", "plainer"])
def test_a_drift_is_found(power: float) -> None:
    found = [alarm(DriftWatch(234), random.Random(seed), power, 2000) for seed in range(10)]
    assert all(count is not None and count < 1500 for count in found)


def test_a_drift_after_a_long_quiet_time_is_found_as_well() -> None:
    watch, draw = DriftWatch(234), random.Random(0)
    assert alarm(watch, draw, 1.0, 5 * drift.EPOCH) is None
    assert alarm(watch, draw, 3.0, 2 * drift.EPOCH) is not None


def test_an_alarm_ends_once_an_epoch_is_quiet() -> None:
    watch, draw = DriftWatch(1000), random.Random(0)
    assert alarm(watch, draw, 3.0, drift.EPOCH) is not None
    for _ in range(3 * drift.EPOCH):
        watch.note(draw.random())
    assert watch.evidence < 0


def test_a_new_version_begins_anew_and_nothing_is_drawn_at_share_zero(pipeline: Pipeline) -> None:
    calibration = pipeline.judge.calibration
    watches = DriftWatches(1.0, seed=0)
    first = [watches.note("m", "1.0.0", calibration, 1e-6) for _ in range(200)]
    assert first[-1] is not None
    assert first[-1] > 0
    second = watches.note("m", "1.0.1", calibration, 0.5)
    assert second is not None
    assert second < 0
    assert DriftWatches(0.0).note("m", "1.0.0", calibration, 0.5) is None


def test_the_metric_has_the_evidence(pipeline: Pipeline) -> None:
    (decision,) = pipeline.decide_images([clean_image()])
    metrics.announce(pipeline)
    before = REGISTRY.get_sample_value("palisade_drift_images_total", {"model": "tiny"}) or 0.0
    metrics.compare(decision, pipeline, DriftWatches(1.0, seed=0))
    assert REGISTRY.get_sample_value("palisade_drift_images_total", {"model": "tiny"}) == before + 1
    assert (REGISTRY.get_sample_value("palisade_drift_evidence", {"model": "tiny"}) or 0.0) < 0
