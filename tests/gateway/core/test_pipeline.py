from __future__ import annotations

import asyncio
import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gateway.core.decision import Decision, Pass
from gateway.core.decode import to_pixels
from gateway.core.engine import Engine
from gateway.core.manifest import Part, Recovery
from gateway.core.outputs import FullOutputs, VerdictOutputs, softmax
from gateway.core.pipeline import Pipeline, Work
from gateway.core.verdict import lead
from gateway.errors import EngineError
from gateway.inference.batching import MicroBatcher
from gateway.inference.lanes import Lanes
from gateway.settings import Settings
from gateway.versions.registry import load_pipeline
from tests.gateway.tiny import clean_image, encode, patched_image, speckled_image


def with_policy(folder: Path, **settings: Any) -> Pipeline:
    return load_pipeline(folder, Settings(threads=1, **settings))


def full(answer: Pass) -> FullOutputs:
    assert isinstance(answer.outputs, FullOutputs)
    return answer.outputs


def test_softmax_by_hand_and_without_overflow() -> None:
    np.testing.assert_allclose(softmax(np.array([0.0, np.log(3.0)], np.float32)), [0.25, 0.75], rtol=1e-6)
    np.testing.assert_allclose(softmax(np.array([1e4, 0.0], np.float32)), [1.0, 0.0])


def test_a_clean_image_passes_untouched(pipeline: Pipeline) -> None:
    decision = pipeline.decide(encode(clean_image()))
    assert (decision.served.prediction.label, decision.flagged, decision.blocked) == ("red", False, False)
    assert decision.neutralized is None
    assert decision.served is decision.raw
    np.testing.assert_array_equal(full(decision.raw).neutral_pixels, to_pixels(clean_image())[0])


def test_sanitize_serves_the_recovered_label_and_keeps_the_flag(pipeline: Pipeline) -> None:
    decision = pipeline.decide(encode(patched_image()))
    assert decision.flagged
    assert decision.raw.prediction.label == "blue"
    assert decision.served.prediction.label == "red"
    done = decision.neutralized
    assert done is not None
    assert (done.region, done.area) == ("roa", 36 / 256)
    assert done.mask[4:10, 4:10].all()
    assert not done.result.verdict.gated
    assert full(decision.served).neutral_pixels[:, 5, 5].tolist() == [0.5, 0.5, 0.5]
    assert decision.strongest_evidence in ("neuron_sensitivity", "margin_drop")


def test_observe_serves_the_raw_label_and_reports_the_rest(bundle_folder: Path) -> None:
    decision = with_policy(bundle_folder, policy="observe").decide(encode(patched_image()))
    assert decision.served.prediction.label == "blue"
    assert decision.neutralized is not None
    assert decision.neutralized.result.prediction.label == "red"
    assert decision.flagged
    assert not decision.blocked


def test_block_blocks_flagged_inputs_only(bundle_folder: Path) -> None:
    pipeline = with_policy(bundle_folder, policy="block")
    assert pipeline.decide(encode(patched_image())).blocked
    clean = pipeline.decide(encode(clean_image()))
    assert not clean.blocked
    assert clean.served.prediction.label == "red"


def test_below_the_gate_only_what_the_label_does_not_rest_on_is_neutralised(pipeline: Pipeline) -> None:
    decision = pipeline.decide(encode(speckled_image()))
    assert not decision.raw.verdict.gated
    done = decision.neutralized
    assert done is not None
    assert done.region == "roa_minus_roi"
    assert done.mask[2, 2]
    assert not done.mask[3, 3]


def test_what_is_served_once_the_gate_was_up(pipeline: Pipeline) -> None:
    """A window that stood out and a second answer with a lead add up to the threshold, exactly."""
    decision = pipeline.decide(encode(patched_image()))
    assert decision.neutralized is not None
    assert decision.raw.verdict.gated
    recovery = pipeline.judge.calibration.recovery
    assert recovery is not None
    clear = lead(decision.neutralized.result.outputs.logits[None])[0]
    strength = recovery.strength(float(full(decision.raw).roa_score), clear, 0.0)

    def decided(rule: Recovery | None) -> Decision:
        judge = copy.copy(pipeline.judge)
        judge.calibration = judge.calibration.model_copy(update={"recovery": rule})
        return Pipeline(pipeline.bundle, pipeline.engine, judge).decide(encode(patched_image()))

    served = decided(recovery.model_copy(update={"threshold": strength}))
    assert served.serve_neutralized
    assert served.flagged
    assert served.served.prediction.label == "red"
    for rule in (None, recovery.model_copy(update={"threshold": strength + 1e-3})):
        kept = decided(rule)
        assert kept.neutralized is not None
        assert not kept.serve_neutralized
        assert kept.served.prediction.label == "blue"


def test_a_companion_that_prefers_the_first_answer_holds_the_second_one_back(pipeline: Pipeline) -> None:
    """Its preference on the image as it came is a third term, where the rule has one."""
    (decision,) = pipeline.decide_images([pipeline.decode(encode(patched_image()))])
    assert decision.neutralized is not None
    second, recovery = decision.neutralized.result, pipeline.judge.calibration.recovery
    assert recovery is not None
    first = decision.raw.prediction.index
    assert first != second.prediction.index
    clear = float(lead(second.outputs.logits[None])[0])
    own = recovery.strength(float(full(decision.raw).roa_score), clear, 0.0)

    def served(favours_first_by: float, rms: float | None) -> bool:
        companion = np.zeros(len(second.outputs.logits), np.float32)
        companion[first] = favours_first_by
        raw = replace(decision.raw, outputs=replace(decision.raw.outputs, companion_logits=companion))
        judge = copy.copy(pipeline.judge)
        rule = recovery.model_copy(update={"threshold": own - 1, "preference_rms": rms})
        judge.calibration = judge.calibration.model_copy(update={"recovery": rule})
        return Pipeline(pipeline.bundle, pipeline.engine, judge)._recovers(raw, second)

    assert [served(by, 2.0) for by in (1.9, 2.1, -9)] == [True, False, True]
    assert served(100, None)


def test_below_the_gate_an_image_that_raises_it_is_not_served_neutralised(pipeline: Pipeline) -> None:
    class Suspicious:
        """An engine to which neutralised images are as unusual as can be."""

        def __init__(self, engine: Engine) -> None:
            self._engine = engine
            self.parts, self.buckets = engine.parts, engine.buckets

        def run(self, pixels: np.ndarray, mask: np.ndarray | None = None, *, part: Part) -> Any:
            found = self._engine.run(pixels, mask, part=part)
            if mask is None:
                return found
            assert isinstance(found, VerdictOutputs)
            return replace(found, scores=np.full_like(found.scores, 1e6))

    assert pipeline.decide(encode(speckled_image())).serve_neutralized
    suspicious = Pipeline(pipeline.bundle, Suspicious(pipeline.engine), pipeline.judge)  # type: ignore[arg-type]
    decision = suspicious.decide(encode(speckled_image()))
    assert decision.neutralized is not None
    assert decision.neutralized.result.verdict.gated
    assert not decision.serve_neutralized


def test_the_same_bytes_give_the_same_decision(pipeline: Pipeline) -> None:
    first, second = (pipeline.decide(encode(patched_image())) for _ in range(2))
    assert first.raw.verdict == second.raw.verdict
    np.testing.assert_array_equal(full(first.served).saliency, full(second.served).saliency)


def test_top_is_ranked_and_bounded(pipeline: Pipeline) -> None:
    top = pipeline.decide(encode(clean_image())).top(2)
    assert [prediction.label for prediction in top] == ["red", "green"]
    assert top[0].probability > top[1].probability


def test_batch_equals_singles(pipeline: Pipeline) -> None:
    images = np.stack([clean_image(), patched_image(), speckled_image()])
    masks = np.random.default_rng(0).random((3, 16, 16)) > 0.8
    batch = pipeline.engine.run(to_pixels(images), masks)
    for i, image in enumerate(images):
        single = pipeline.engine.run(to_pixels(image), masks[i : i + 1])
        for name, value in vars(batch).items():
            if value is not None:
                np.testing.assert_allclose(value[i], vars(single)[name][0], rtol=1e-6, atol=1e-6)


def test_the_server_and_the_command_line_decide_alike(pipeline: Pipeline) -> None:
    images = [clean_image(), patched_image(), speckled_image()]

    async def served() -> list[Decision]:
        batcher = MicroBatcher()
        lanes = Lanes(batcher)
        steps = [pipeline.steps(image, explain=True, screening="off") for image in images]
        decisions = await asyncio.gather(*(lanes.run(pipeline, each) for each in steps))
        batcher.close()
        return decisions

    for one, other in zip(asyncio.run(served()), pipeline.decide_images(images), strict=True):
        assert (one.raw.verdict, one.served.prediction) == (other.raw.verdict, other.served.prediction)
        np.testing.assert_allclose(full(one.served).saliency, full(other.served).saliency, atol=1e-6)
        assert one.timing.engine > 0


def test_what_was_not_asked_for_is_not_computed(pipeline: Pipeline) -> None:
    (decision,) = pipeline.decide_images([patched_image()], explain=False)
    assert not isinstance(decision.served.outputs, FullOutputs)
    with pytest.raises(ValueError, match="without an explanation"):
        _ = decision.explained
    assert decision.neutralized is not None
    assert decision.flagged


def test_float_pixels_are_taken_as_they_are(pipeline: Pipeline) -> None:
    image = clean_image()
    (bytes_,), (floats,) = pipeline.decide_images([image]), pipeline.decide_images([to_pixels(image)[0]])
    assert bytes_.raw.verdict == floats.raw.verdict


def test_an_image_without_finite_logits_fails_alone(pipeline: Pipeline) -> None:
    good, bad = to_pixels(clean_image())[0], np.full((3, 16, 16), np.nan, np.float32)
    results = pipeline.run([Work("full", good), Work("full", bad), Work("full", good)])
    assert isinstance(results[1], EngineError)
    assert [result.prediction.label for result in results if isinstance(result, Pass)] == ["red", "red"]


def test_engine_refuses_wrong_arrays(pipeline: Pipeline) -> None:
    with pytest.raises(ValueError, match="pixels: expected"):
        pipeline.engine.run(np.zeros((1, 3, 8, 8), np.float32))
    with pytest.raises(ValueError, match="pixels: expected"):
        pipeline.engine.run(np.zeros((1, 3, 16, 16), np.float64))
    with pytest.raises(ValueError, match="mask: expected"):
        pipeline.engine.run(np.zeros((1, 3, 16, 16), np.float32), np.zeros((2, 16, 16), np.float32))
