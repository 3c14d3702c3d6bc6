"""Certificates on HTTP: what requests may ask for, what answers state, what a policy refuses."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi import FastAPI

from gateway.answers.certificate_request import Asked, CertificatePolicy, uncertified, wanted
from gateway.app import create_api
from gateway.core.certificate import CertificateWanted
from gateway.core.engine import Engine
from gateway.core.loading import load_bundle
from gateway.core.masks import MaskSet
from gateway.core.pipeline import Pipeline
from gateway.errors import Forbidden
from gateway.inference.dispatch import Dispatcher
from gateway.inference.lanes import MASKED_COST
from gateway.settings import Settings
from gateway.telemetry import metrics
from gateway.versions.registry import Registry
from tests.gateway.http.test_api import call, problem, value
from tests.gateway.tiny import add_small_field, clean_image, encode, patched_image, write_bundle

# Under two masks of four an axis the darker one's label falls.
PROVED, AGREED, NONE = encode(clean_image((200, 0, 0))), encode(clean_image()), encode(patched_image())


@pytest.fixture
def api(pipeline: Pipeline) -> Iterator[FastAPI]:
    yield from _api(pipeline)


def _api(pipeline: Pipeline, **settings: Any) -> Iterator[FastAPI]:
    app = create_api(Settings(**settings))
    app.state.registry = Registry([pipeline])
    metrics.announce(pipeline)
    yield app
    app.state.dispatcher.close()


@pytest.mark.parametrize(("image", "level"), [(PROVED, "proved"), (AGREED, "agreed"), (NONE, "none")])
def test_a_certificate_is_stated_with_its_patch_and_its_cost(api: FastAPI, image: bytes, level: str) -> None:
    before = value("palisade_certificates_total", model="tiny", level=level)
    body = call(api, "POST", "/v1/predict?certify=patch", content=image).json()
    made = body["certificate"]
    assert (made["level"], made["label"]) == (level, body["prediction"]["label"])
    assert made["patch"] == {"side": 3, "share": pytest.approx(9 / 256, abs=1e-6)}
    assert (made["masks"], made["tried"], made["votes"]) == (16, "proved", None)
    assert made["forwards"] == 136 if level == "proved" else 0 < made["forwards"] < 136
    assert value("palisade_certificates_total", model="tiny", level=level) == before + 1


def test_the_network_of_small_fields_certifies_in_one_pass(tmp_path: Path) -> None:
    bundle = load_bundle(add_small_field(write_bundle(tmp_path / "tiny")))
    api = next(_api(Pipeline.on(Engine.open(bundle, device="cpu"), bundle)))
    for asked, image, expected in (
        ("small_field", PROVED, ("proved", "small_field", 1)),
        ("patch", PROVED, ("proved", "small_field", 1)),
        ("small_field", NONE, ("none", "small_field", 1)),
    ):
        made = call(api, "POST", f"/v1/predict?certify={asked}", content=image).json()["certificate"]
        assert (made["level"], made["by"], made["forwards"]) == expected
    masks = call(api, "POST", "/v1/predict?certify=patch&explain=all", content=PROVED).json()["certificate"]
    assert (masks["by"], len(masks["votes"])) == ("masks", 16)
    (listed,) = call(api, "GET", "/v1/models").json()["models"]
    assert listed["small_field"] is True


def test_without_one_it_cannot_be_asked(api: FastAPI) -> None:
    answer = call(api, "POST", "/v1/predict?certify=small_field", content=PROVED)
    assert (answer.status_code, answer.json()["code"]) == (422, "bad_parameter")
    (listed,) = call(api, "GET", "/v1/models").json()["models"]
    assert listed["small_field"] is False


def test_without_a_request_there_is_none(api: FastAPI) -> None:
    assert call(api, "POST", "/v1/predict", content=AGREED).json()["certificate"] is None


def test_the_explanation_has_the_vote_of_every_mask(api: FastAPI) -> None:
    made = call(api, "POST", "/v1/explain?certify=patch", content=NONE).json()["certificate"]
    assert len(made["votes"]) == 16
    assert made["forwards"] == 16
    assert {vote["label"] for vote in made["votes"]} == {"red", "blue"}
    assert made["votes"][0] | {"label": "", "index": 0} == {
        "top": 0, "left": 0, "height": 6, "width": 6, "label": "", "index": 0
    }  # fmt: skip


def test_one_level_takes_one_round(api: FastAPI) -> None:
    made = call(api, "POST", "/v1/predict?certify=patch&certify_level=agreed", content=PROVED).json()["certificate"]
    assert (made["level"], made["tried"], made["forwards"]) == ("agreed", "agreed", 16)


def test_an_answer_below_the_level_that_is_required_is_refused(api: FastAPI) -> None:
    detail = problem(
        call(api, "POST", "/v1/predict?certify=patch&require=proved", content=AGREED), 403, "not_certified"
    )
    assert "'agreed', required is 'proved', against a patch of 3 x 3" in detail
    assert call(api, "POST", "/v1/predict?certify=patch&require=agreed", content=AGREED).status_code == 200
    problem(call(api, "POST", "/v1/explain?certify=patch&require=agreed", content=NONE), 403, "not_certified")


def test_an_answer_that_is_withheld_counts_once(api: FastAPI) -> None:
    def counted() -> dict[str, float]:
        outcomes = ("ok", "flagged", "blocked", "rejected", "failed")
        return {name: value("palisade_requests_total", model="tiny", outcome=name) for name in outcomes}

    before = counted()
    problem(call(api, "POST", "/v1/predict?certify=patch&require=proved", content=AGREED), 403, "not_certified")
    assert {name: count - before[name] for name, count in counted().items() if count != before[name]} == {"blocked": 1}


@pytest.mark.parametrize(
    ("query", "why"),
    [
        ("patch_side=3", "patch_side is of a certificate"),
        ("require=agreed", "require is of a certificate"),
        ("certify=patch&patch_side=9", "must be 1 to 8 pixels"),
        ("certify=patch&patch_side=0", "patch_side"),
        ("certify=patches", "certify"),
        ("certify=patch&certify_level=agreed&require=proved", "proved is not reached"),
    ],
)
def test_what_no_certificate_has_is_refused(api: FastAPI, query: str, why: str) -> None:
    assert why in problem(call(api, "POST", f"/v1/predict?{query}", content=AGREED), 422, "bad_parameter")


def test_a_policy_certifies_every_answer(pipeline: Pipeline) -> None:
    for api in _api(pipeline, require="agreed", certify_share=0.03):
        assert call(api, "POST", "/v1/predict", content=AGREED).json()["certificate"]["level"] == "agreed"
        problem(call(api, "POST", "/v1/predict", content=NONE), 403, "not_certified")
        # A smaller patch would be a weaker statement than the policy's.
        made = call(api, "POST", "/v1/predict?certify=patch&patch_side=1&certify_level=proved", content=PROVED).json()
        assert made["certificate"]["patch"]["side"] == 3
        infer = {"inputs": [_pixels(clean_image(), patched_image())], "outputs": [{"name": "label"}]}
        answer = call(api, "POST", "/v2/models/tiny/infer", json=infer).json()
        assert answer["outputs"][0]["data"] == ["red", ""]
        assert answer["parameters"]["blocked"] == 1


def test_at_disclosure_label_a_policy_runs_every_mask_and_nobody_may_ask(pipeline: Pipeline) -> None:
    policy = CertificatePolicy(require="agreed")
    made = wanted(Asked(), pipeline, policy, "label")
    assert made is not None
    assert made.thorough
    assert made.level == "agreed"
    decision = pipeline.certified(pipeline.decide(NONE), made)
    assert decision.certificate is not None
    assert decision.certificate.complete
    assert uncertified(decision, "label").detail == "not answered"
    with pytest.raises(Forbidden, match="not for callers at disclosure label"):
        wanted(Asked("patch"), pipeline, policy, "label")
    assert wanted(Asked(), pipeline, CertificatePolicy(), "label") is None


def _pixels(*images: np.ndarray) -> dict[str, Any]:
    stacked = np.stack(images)
    return {"name": "pixels", "datatype": "UINT8", "shape": list(stacked.shape), "data": stacked.ravel().tolist()}


def test_certificates_by_the_open_inference_protocol(api: FastAPI) -> None:
    def infer(*images: np.ndarray, outputs: list[str] | None = None, **parameters: Any) -> Any:
        body: dict[str, Any] = {"inputs": [_pixels(*images)], "parameters": parameters}
        if outputs:
            body["outputs"] = [{"name": name} for name in outputs]
        return call(api, "POST", "/v2/models/tiny/infer", json=body)

    one = infer(clean_image(), certify="patch", patch_side=2).json()["parameters"]
    assert (one["certificate"], one["certificate_patch_side"]) == ("proved", 2)
    two = infer(clean_image(), patched_image(), certify="patch", outputs=["certificate", "label"]).json()
    assert two["outputs"][0]["data"] == ["agreed", "none"]
    assert two["parameters"]["certificate_forwards"] > 16
    problem_of(infer(clean_image(), outputs=["certificate"]), "send the parameter certify")
    problem_of(infer(clean_image(), certify=True), "parameter certify")
    problem_of(infer(clean_image(), certify="patch", patch_side="3"), "parameter patch_side")
    problem_of(infer(clean_image(), certifi="patch"), "did you mean 'certify'")
    assert infer(patched_image(), certify="patch", require="agreed").status_code == 403


def problem_of(response: Any, why: str) -> None:
    assert response.status_code == 422, response.text
    assert why in response.json()["detail"]


def test_admission_counts_the_forward_passes_of_certificates() -> None:
    dispatcher = Dispatcher(Settings(request_timeout=3.0, batches_in_flight=2))
    both = CertificateWanted(MaskSet(32, 32, 5, 4))
    dispatcher.batcher._item_seconds = 0.1  # of a verdict; two batches run at once
    try:
        assert dispatcher.refusal() is None
        assert dispatcher.refusal(both.forwards * MASKED_COST) is not None
        agreed = CertificateWanted(MaskSet(32, 32, 5, 4), level="agreed")
        assert dispatcher.refusal(agreed.forwards * MASKED_COST) is None
    finally:
        dispatcher.close()


def test_an_old_pace_does_not_refuse_certificates_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    """With `require` every image is certified: were all of them refused, nothing would measure the pace again."""
    dispatcher = Dispatcher(Settings(request_timeout=0.2))
    both = CertificateWanted(MaskSet(32, 32, 5, 4))
    dispatcher.batcher._item_seconds = 10.0  # as after batches that an upstream held until they timed out
    try:
        assert dispatcher.refusal(both.forwards * MASKED_COST) is not None
        time.sleep(0.25)
        assert dispatcher.refusal(both.forwards * MASKED_COST) is None
        monkeypatch.setattr(dispatcher, "_images", 1)  # one is enough to tell
        assert dispatcher.refusal(both.forwards * MASKED_COST) is not None
    finally:
        dispatcher.close()


def test_a_certificate_ends_at_the_deadline(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    answer = Pipeline.answer

    def slow(self: Pipeline, batch: Any) -> Any:
        time.sleep(0.2)
        return answer(self, batch)

    monkeypatch.setattr(Pipeline, "answer", slow)
    for api in _api(pipeline, request_timeout=0.3):
        problem(call(api, "POST", "/v1/predict?certify=patch", content=PROVED), 503, "overloaded")


def test_settings_name_what_they_take(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="certify_share"):
        Settings(certify_share=0.3)
