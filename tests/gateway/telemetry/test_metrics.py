from __future__ import annotations

import random
from pathlib import Path

from prometheus_client import REGISTRY

from gateway.core.engine import Engine
from gateway.core.loading import load_bundle
from gateway.core.pipeline import Pipeline
from gateway.telemetry import metrics
from tests.gateway.core.test_kinds import tell_apart
from tests.gateway.tiny import clean_image, patched_image


def test_first_error_is_an_increase(pipeline: Pipeline) -> None:
    metrics.announce(pipeline)
    for code in ("internal_error", "overloaded", "audit_unavailable"):
        assert REGISTRY.get_sample_value("palisade_rejected_total", {"code": code}) is not None


def test_p_values_stay_uniform_where_the_screen_answers(pipeline: Pipeline) -> None:
    cascade = pipeline.judge.calibration.cascade
    assert cascade is not None
    (decision,) = pipeline.decide_images([clean_image()], explain=False, screening="on")
    assert decision.stage == "screen"

    def at_most(le: str) -> float:
        return REGISTRY.get_sample_value("palisade_p_value_bucket", {"model": "tiny", "le": le}) or 0.0

    bounds = ("0.1", "0.6", "1.0")
    before = [at_most(le) for le in bounds]
    random.seed(0)
    for _ in range(400):
        metrics.observe(decision, pipeline)
    low, middle, high = (at_most(le) - n for le, n in zip(bounds, before, strict=True))
    assert (low, high) == (0, 400)
    assert abs(middle / 400 - (0.6 - cascade.goes_on) / (1 - cascade.goes_on)) < 0.1


def test_kinds_are_counted_where_the_bundle_tells_them_apart(bundle_folder: Path, tmp_path: Path) -> None:
    bundle = load_bundle(tell_apart(bundle_folder, tmp_path / "told"))
    pipeline = Pipeline.on(Engine.open(bundle, device="cpu", threads=1), bundle)
    metrics.announce(pipeline)

    def count(kind: str, flagged: str) -> float | None:
        labels = {"model": "tiny", "kind": kind, "flagged": flagged}
        return REGISTRY.get_sample_value("palisade_kinds_total", labels)

    before = count("attacked", "true")
    assert before is not None
    assert count("ordinary", "true") is None
    (decision,) = pipeline.decide_images([patched_image()])
    metrics.observe(decision, pipeline)
    assert count("attacked", "true") == before + 1
