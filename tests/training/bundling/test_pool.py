"""`palisade pool`: the threshold keeps benign answers, and nothing else of the bundle changes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from gateway.core.loading import Bundle, load_bundle
from gateway.core.pool import leads, pooled
from training.bundling.pool import HARMED, WEIGHTS, fitted, opinions, with_pool
from training.bundling.provenance import made_with
from training.commands.main import app
from training.errors import TrainingError
from training.served.answers import open_pipeline


@given(st.integers(0, 1000), st.sampled_from([0.0, 0.02, 0.1, 1.0]))
def test_no_more_right_answers_are_taken_away_than_allowed_and_no_higher_threshold_than_needed(
    seed: int, harmed: float
) -> None:
    rng = np.random.default_rng(seed)
    label, group = rng.integers(0, 4, 60), np.arange(60) // 2
    answering, companion, field = (rng.normal(0, 2, (60, 4)) + 2 * np.eye(4)[label] for _ in range(3))
    for third in (None, field):
        rule = fitted(answering, companion, third, label, group, harmed=harmed)
        best, lead = leads(pooled(rule, answering, companion, third), first := answering.argmax(1))

        def lost(threshold: float, best: np.ndarray = best, lead: np.ndarray = lead, first: np.ndarray = first) -> int:
            return int(((first == label) & (best != label) & (lead >= threshold)).sum())

        assert lost(rule.threshold) <= harmed * 60
        assert rule.threshold == 0 or lost(rule.threshold - 1e-9) > harmed * 60
        assert (rule.n, rule.groups, rule.small_field is None) == (60, 30, third is None)


def test_a_bundle_gets_a_pool_and_stays_as_it_is(bundle: Bundle, tmp_path: Path) -> None:
    made = with_pool(bundle.path, tmp_path / "pooling")
    rule = made.calibration("cpu", "fp32").pool
    assert rule is not None
    assert (rule.companion, rule.small_field, rule.harmed) == (WEIGHTS[1], None, HARMED)
    data, _ = made_with(bundle)
    assert rule.n == len(data.calibrate)
    assert made.manifest.files == bundle.manifest.files
    assert made.version == bundle.version
    answering, companion, field = opinions(open_pipeline(made), data.calibrate.x[:5])
    assert answering.shape == companion.shape == (5, len(made.manifest.classes))
    assert field is None


def test_the_command_says_what_it_made(bundle: Bundle, tmp_path: Path) -> None:
    out = tmp_path / "pooling"
    result = CliRunner().invoke(app, ["pool", str(bundle.path), "--out", str(out), "--harmed", "0.01"])
    assert result.exit_code == 0, result.output
    assert "a pool of answering network and companion" in " ".join(result.output.split())
    rule = load_bundle(out).calibration("cpu", "fp32").pool
    assert rule is not None
    assert rule.harmed == 0.01


def test_what_is_there_is_not_replaced(bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    with pytest.raises(TrainingError, match="exists"):
        with_pool(bundle.path, tmp_path / "there")
