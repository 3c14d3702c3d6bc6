"""The pool on HTTP, in the audit trail and in metrics: `PALISADE_POOL`."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from fastapi import FastAPI

from gateway.answers.panel import panel_png
from gateway.app import create_api
from gateway.audit.event import Subject, kind_of
from gateway.core.pipeline import Pipeline
from gateway.errors import ConfigError
from gateway.settings import Settings
from gateway.telemetry import metrics
from gateway.versions.registry import Registry, load_registry
from tests.gateway.http.test_api import call, value
from tests.gateway.tiny import add_pool, clean_image, doubtful_image, encode, write_bundle


@pytest.fixture
def pooling(tmp_path: Path) -> Pipeline:
    settings = Settings(models=str(add_pool(write_bundle(tmp_path / "tiny"))), pool=True, device="cpu")
    return load_registry(settings).get(None)


@pytest.fixture
def api(pooling: Pipeline) -> Iterator[FastAPI]:
    app = create_api(Settings(pool=True))
    app.state.registry = Registry([pooling])
    metrics.announce(pooling)
    yield app
    app.state.dispatcher.close()


@pytest.mark.parametrize("explain", ["none", "saliency", "all"])
def test_an_answer_says_that_it_is_the_pool_s(api: FastAPI, explain: str) -> None:
    before = value("palisade_pooled_total", model="tiny")
    answer = call(api, "POST", f"/v1/predict?explain={explain}", content=encode(doubtful_image())).json()
    assert answer["prediction"]["label"] == answer["top"][0]["label"] == "red"
    assert answer["pool"]["before"]["label"] == "blue"
    assert 0 < answer["pool"]["lead"] < 1
    assert not answer["pool"]["small_field"]
    assert answer["verdict"]["flagged"]
    if explain != "none":  # the map is the answering network's, of its own label
        assert answer["explanation"]["label"] == "blue"
    assert value("palisade_pooled_total", model="tiny") == before + 1
    clean = call(api, "POST", "/v1/predict", content=encode(clean_image((150, 0, 0)))).json()
    assert clean["pool"] is None
    (model,) = call(api, "GET", "/v1/models").json()["models"]
    assert model["pool"]


def test_an_event_has_what_was_served(pooling: Pipeline) -> None:
    (decision,) = pooling.decide_images([doubtful_image()])
    kind = kind_of(decision, sampled=False)
    assert kind == "flagged"
    subject = Subject("r1", datetime.now(UTC), kind, decision, None, b"", sampled=False, sample_probability=0.0)
    event = subject.record("none").event
    assert event.pooled is not None
    assert (event.before.label, event.pooled.label) == ("blue", "red")
    assert panel_png(decision)[:4] == b"\x89PNG"


def test_open_inference_says_so_too(api: FastAPI) -> None:
    image = doubtful_image()
    tensor = {"name": "pixels", "shape": [1, *image.shape], "datatype": "UINT8", "data": image.flatten().tolist()}
    answer = call(api, "POST", "/v2/models/tiny/infer", json={"inputs": [tensor]}).json()
    assert answer["parameters"]["pooled"] is True
    label = next(each for each in answer["outputs"] if each["name"] == "label")
    assert label["data"] == ["red"]


def test_a_bundle_without_a_pool_is_refused_at_the_start(tmp_path: Path) -> None:
    write_bundle(tmp_path / "tiny")
    with pytest.raises(ConfigError, match="palisade pool"):
        load_registry(Settings(models=str(tmp_path), pool=True, device="cpu"))
