"""The pool: whom it asks, when it overrules, and that it clears no flag and breaks no guarantee."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from gateway.core.decision import Pass
from gateway.core.engine import Engine
from gateway.core.loading import load_bundle
from gateway.core.manifest import Recovery
from gateway.core.outputs import softmax
from gateway.core.pipeline import Pipeline, Seen, Work
from gateway.core.pool import field_logits, leads, may_overrule, opinion, pooled
from gateway.core.rules import PoolRule
from gateway.errors import BundleError, PalisadeError
from tests.gateway.tiny import (
    add_pool,
    add_small_field,
    add_votes,
    clean_image,
    doubtful_image,
    patched_image,
    write_bundle,
)

RULE = PoolRule(answering=0.5, companion=1.0, threshold=0.0, harmed=0.01, n=100, groups=20)
LOGITS = arrays(np.float32, (3, 4), elements=st.floats(-20, 20, width=32))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return add_pool(write_bundle(tmp_path_factory.mktemp("pool") / "tiny"))


def opened(folder: Path, **how: object) -> Pipeline:
    bundle = load_bundle(folder)
    return Pipeline.on(Engine.open(bundle, device="cpu"), bundle, pool=True, **how)  # type: ignore[arg-type]


@given(LOGITS, LOGITS)
def test_a_pool_is_a_weighted_mean_of_probabilities(answering: np.ndarray, companion: np.ndarray) -> None:
    found = pooled(RULE, answering, companion, None)
    np.testing.assert_allclose(found.sum(1), 1, atol=1e-6)
    first = answering.argmax(1)
    best, lead = leads(found, first)
    assert (lead >= 0).all()
    assert ((lead == 0) | (best != first)).all()
    for i in range(len(first)):
        overruled = opinion(RULE, int(first[i]), answering[i], companion[i], None)
        assert (None if overruled is None else overruled.index) == (None if best[i] == first[i] else best[i])


def test_a_threshold_keeps_answers_that_are_led_by_less() -> None:
    answering, companion = np.log([0.7, 0.2, 0.1]), np.log([0.2, 0.7, 0.1])
    found = opinion(RULE, 0, answering, companion, None)
    assert found is not None
    assert found.lead == pytest.approx(0.5 / 3)
    for threshold, overrules in ((0.16, True), (0.17, False)):
        rule = RULE.model_copy(update={"threshold": threshold})
        assert (opinion(rule, 0, answering, companion, None) is not None) == overrules


def test_a_rule_that_asks_the_network_of_small_fields_needs_it() -> None:
    rule, logits = RULE.model_copy(update={"small_field": 0.8}), np.zeros((1, 3), np.float32)
    with pytest.raises(ValueError, match="small fields"):
        pooled(rule, logits, logits, None)
    assert field_logits(np.ones((3, 2, 2))).tolist() == [2.0, 2.0, 2.0]


@given(LOGITS, LOGITS, LOGITS, st.floats(0.05, 3), st.floats(0, 0.5))
def test_the_network_of_small_fields_is_not_asked_only_where_it_could_change_nothing(
    answering: np.ndarray, companion: np.ndarray, field: np.ndarray, weight: float, threshold: float
) -> None:
    rule = RULE.model_copy(update={"small_field": weight, "threshold": threshold})
    for i, index in enumerate(answering.argmax(1)):
        asked = may_overrule(rule, int(index), answering[i], companion[i])
        assert asked or opinion(rule, int(index), answering[i], companion[i], field[i]) is None
        # Were it sure of the runner-up of the two others, it would have changed the answer.
        known = rule.answering * softmax(answering[i]) + rule.companion * softmax(companion[i])
        known[index] = -1
        sure = np.full(4, -100.0, np.float32)
        sure[known.argmax()] = 100
        changed = opinion(rule, int(index), answering[i], companion[i], sure) is not None
        assert changed <= asked


def test_what_is_attacked_is_answered_by_the_pool_and_stays_flagged(folder: Path) -> None:
    pipeline = opened(folder)
    doubtful, clean, recovered = pipeline.decide_images([doubtful_image(), clean_image((150, 0, 0)), patched_image()])
    assert (doubtful.raw.prediction.label, doubtful.served.prediction.label) == ("blue", "red")
    assert doubtful.flagged
    assert doubtful.pooled is not None
    assert doubtful.top(2)[0] == doubtful.served.prediction
    assert doubtful.served.prediction.probability == pytest.approx(doubtful.pooled.probabilities.max())
    assert doubtful.explained.served is doubtful.shown.outputs
    assert clean.pooled is None
    # Neutralisation has found another answer there, which stands.
    assert (recovered.pooled, recovered.serve_neutralized, recovered.served.prediction.label) == (None, True, "red")


@pytest.mark.parametrize("action", ["observe", "block"])
def test_only_the_policy_sanitize_serves_the_pool(folder: Path, action: str) -> None:
    (found,) = opened(folder, action=action).decide_images([doubtful_image()])
    assert (found.pooled, found.served.prediction.label) == (None, "blue")


def test_a_pool_that_is_off_changes_nothing(folder: Path) -> None:
    bundle = load_bundle(folder)
    engine = Engine.open(bundle, device="cpu")
    (off,) = Pipeline.on(engine, bundle, pool=False).decide_images([doubtful_image()])
    assert (off.pooled, off.served.prediction.label) == (None, "blue")
    (unsaid,) = Pipeline.on(engine, bundle).decide_images([doubtful_image()])
    assert unsaid.served.prediction.label == "red"


def test_what_is_not_suspect_is_answered_by_the_pool_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline = opened(add_pool(write_bundle(tmp_path / "tiny")))
    run = pipeline.run

    def unsuspected(batch: Sequence[Work]) -> list[Pass | PalisadeError]:
        calm = pipeline._unsuspected
        return [replace(each, verdict=calm) if isinstance(each, Pass) else each for each in run(batch)]

    monkeypatch.setattr(pipeline, "run", unsuspected)
    (found,) = pipeline.decide_images([doubtful_image()])
    assert found.level == "none"
    assert (found.raw.prediction.label, found.served.prediction.label) == ("blue", "red")


def test_where_no_second_answer_is_served_the_pool_answers_the_input(tmp_path: Path) -> None:
    pipeline = opened(add_pool(write_bundle(tmp_path / "tiny")))
    never = Recovery(contrast_mean=0, contrast_std=1, lead_mean=0, lead_std=1, threshold=1e6)
    pipeline.judge.calibration = pipeline.judge.calibration.model_copy(update={"recovery": never})
    (found,) = pipeline.decide_images([patched_image()])
    assert (found.serve_neutralized, found.served.prediction.label) == (False, "red")
    assert found.shown is found.raw


def test_the_network_of_small_fields_is_asked_only_about_images_that_it_could_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline = opened(add_pool(add_small_field(write_bundle(tmp_path / "tiny")), small_field=0.2))
    asked: list[Seen] = []
    see = pipeline.see

    def noting(batch: list[Seen]) -> object:
        asked.extend(batch)
        return see(batch)

    monkeypatch.setattr(pipeline, "see", noting)
    doubtful, _ = pipeline.decide_images([doubtful_image(), clean_image((150, 0, 0))])
    assert len(asked) == 1
    assert doubtful.pooled is not None


@pytest.mark.parametrize("strictness", [1.0, 100.0])
def test_votes_are_about_the_first_answer_and_without_a_flag_the_pool_serves_nothing_that_they_object_to_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, strictness: float
) -> None:
    folder = write_bundle(tmp_path / "tiny", strictness=strictness)
    add_votes(add_small_field(folder), patch=6, by="small_field", whole=0.5)
    pipeline = opened(add_pool(folder, small_field=0.2), votes=True)
    (found,) = pipeline.decide_images([doubtful_image()])
    assert found.pooled is not None
    assert found.level == ("flagged" if strictness == 1 else "suspect")
    assert found.voted is not None
    before = found.voted.p_value
    vote = pipeline.votes.vote  # type: ignore[union-attr]

    def contrary(index: int, *more: np.ndarray) -> object:
        made = vote(index, *more)
        return made if index == found.raw.prediction.index else type(made)(**vars(made) | {"p_value": before / 2})

    monkeypatch.setattr(pipeline.votes, "vote", contrary)
    (kept,) = pipeline.decide_images([doubtful_image()])
    assert (kept.pooled is None) == (not found.flagged)
    assert kept.raw.verdict.p_value == found.raw.verdict.p_value


def test_a_bundle_without_a_pool_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="palisade pool"):
        opened(write_bundle(tmp_path / "tiny"))


def test_a_pool_needs_whom_it_asks(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="small fields"):
        add_pool(write_bundle(tmp_path / "tiny"), small_field=0.8)
