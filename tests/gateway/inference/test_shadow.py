"""A second version is scored in the background, and only counted."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from prometheus_client import REGISTRY

from gateway.core.decision import Decision
from gateway.core.pipeline import Pipeline
from gateway.inference.batching import MicroBatcher
from gateway.inference.shadow import Shadow, agreement
from gateway.settings import Settings
from gateway.versions.registry import Registry, Versions, load_pipeline
from tests.gateway.tiny import clean_image, patched_image, write_bundle


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    """A version that names its classes otherwise."""
    folder = write_bundle(tmp_path_factory.mktemp("shadow") / "tiny", version="2.0.0", classes=["r", "g", "b"])
    return load_pipeline(folder, Settings(threads=1))


class Busy(MicroBatcher):
    waiting = 1


@pytest.fixture
def registry(pipeline: Pipeline, other: Pipeline) -> Registry:
    registry = Registry()
    loaded = {("tiny", "1.0.0"): pipeline, ("tiny", "2.0.0"): other}
    registry.put("tiny", Versions(active="1.0.0", shadow="2.0.0"), loaded)
    return registry


@pytest.fixture
def shadow(registry: Registry) -> Iterator[Shadow]:
    shadow = Shadow(registry, MicroBatcher())
    yield shadow
    shadow.close()


def counted(outcome: str) -> float:
    labels = {"model": "tiny", "version": "2.0.0", "agreement": outcome}
    return REGISTRY.get_sample_value("palisade_shadow_total", labels) or 0.0


def wait_for(outcome: str, count: float) -> None:
    deadline = time.monotonic() + 5
    while counted(outcome) < count:
        assert time.monotonic() < deadline, outcome
        time.sleep(0.005)


def test_decisions_are_compared_by_label_and_flag(pipeline: Pipeline, other: Pipeline) -> None:
    clean, patched = pipeline.decide_images([clean_image(), patched_image()])
    assert (clean.flagged, patched.flagged) == (False, True)
    flipped = replace(clean, raw=replace(clean.raw, verdict=replace(clean.raw.verdict, flagged=True)))
    (renamed,) = other.decide_images([clean_image()])
    both = replace(renamed, raw=replace(renamed.raw, verdict=flipped.raw.verdict))
    assert agreement(clean, clean) == "same"
    assert agreement(clean, flipped) == "flag_differs"
    assert agreement(clean, renamed) == "label_differs"
    assert agreement(clean, both) == "both_differ"


def test_what_the_active_version_answered_is_scored(shadow: Shadow, pipeline: Pipeline, other: Pipeline) -> None:
    image = clean_image()
    (decision,) = pipeline.decide_images([image])
    before = counted("label_differs")
    shadow.offer(pipeline, image, decision)
    shadow.offer(other, image, decision)  # asked for by its version: nothing is in its shadow
    wait_for("label_differs", before + 1)
    shadow.close()
    assert counted("label_differs") == before + 1


def test_more_than_a_few_are_dropped(shadow: Shadow, pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = threading.Event()
    image = clean_image()
    decisions = pipeline.decide_images([image])

    def slow(images: list[np.ndarray], **_: object) -> list[Decision]:
        gate.wait(5)
        return decisions

    monkeypatch.setattr("gateway.core.pipeline.Pipeline.decide_images", lambda self, images, **kw: slow(images, **kw))
    dropped, same = counted("dropped"), counted("same")
    start = time.monotonic()
    for _ in range(50):
        shadow.offer(pipeline, image, decisions[0])
    assert time.monotonic() - start < 4  # not one of them waited for the gate
    assert counted("dropped") - dropped == 46
    gate.set()
    wait_for("same", same + 4)


def test_nothing_is_scored_while_requests_wait(registry: Registry, pipeline: Pipeline) -> None:
    shadow = Shadow(registry, Busy())
    dropped = counted("dropped")
    shadow.offer(pipeline, clean_image(), pipeline.decide_images([clean_image()])[0])
    assert counted("dropped") == dropped + 1
    shadow.close()


def test_a_failure_is_counted_and_harms_nobody(shadow: Shadow, pipeline: Pipeline, tmp_path: Path) -> None:
    (decision,) = pipeline.decide_images([clean_image()])
    failed, differ = counted("failed"), counted("label_differs")
    for image in (np.zeros((3, 3, 3), np.uint8), clean_image()):
        shadow.offer(pipeline, image, decision)
    wait_for("failed", failed + 1)
    wait_for("label_differs", differ + 1)
