"""The application in process: parameters, response bodies, error shapes, counting."""

from __future__ import annotations

import asyncio
import base64
import io
import random
import threading
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from fastapi import FastAPI
from PIL import Image
from prometheus_client import REGISTRY

from gateway import errors
from gateway.app import create_api
from gateway.core.decision import Pass
from gateway.core.pipeline import Pipeline, Work
from gateway.errors import PalisadeError
from gateway.settings import Settings
from gateway.telemetry import metrics
from gateway.versions.registry import Registry, load_pipeline
from tests.gateway.http.ways import WAYS, by, entrance
from tests.gateway.tiny import clean_image, encode, patched_image

PNG = {"Content-Type": "image/png"}
CLEAN, PATCHED = encode(clean_image()), encode(patched_image())


@pytest.fixture(params=WAYS)
def api(pipeline: Pipeline, request: pytest.FixtureRequest) -> Iterator[FastAPI]:
    app = by(request.param, create_api(Settings(max_body_bytes=100_000, body_timeout=0.5)))
    app.state.registry = Registry([pipeline])
    metrics.announce(pipeline)
    yield app
    app.state.dispatcher.close()


def call(app: FastAPI, method: str, url: str, **request: Any) -> httpx.Response:
    async def send() -> httpx.Response:
        transport = httpx.ASGITransport(entrance(app))
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            return await client.request(method, url, **request)

    return asyncio.run(send())


def problem(response: httpx.Response, status: int, code: str) -> str:
    assert response.headers["content-type"] == "application/problem+json"
    body = response.json()
    assert (response.status_code, body["status"], body["code"]) == (status, status, code)
    assert body["instance"].endswith(response.headers["x-request-id"])
    assert "Traceback" not in response.text
    return str(body["detail"])


def value(name: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(name, labels) or 0.0


def test_plain_prediction(api: FastAPI) -> None:
    response = call(api, "POST", "/v1/predict", content=CLEAN, headers=PNG)
    body = response.json()
    assert response.status_code == 200
    assert body["id"] == response.headers["x-request-id"]
    assert body["model"] == {"name": "tiny", "version": "1.0.0"}
    assert body["prediction"]["label"] == "red"
    assert [entry["index"] for entry in body["top"]] == [0, 1, 2]
    assert body["verdict"]["flagged"] is False
    assert body["neutralization"] == {
        "applied": False,
        "served": False,
        "region": None,
        "area": 0.0,
        "before": None,
        "after": None,
        "changed": False,
        "p_value": None,
    }
    assert body["explanation"] is None
    timing = body["timing_ms"]
    assert timing["total"] == pytest.approx(timing["decode"] + timing["queue"] + timing["engine"], abs=0.01)


def test_full_explanation_of_a_neutralised_image(api: FastAPI) -> None:
    body = call(api, "POST", "/v1/predict?explain=all&top_k=1", content=PATCHED, headers=PNG).json()
    verdict, neutralization, explanation = body["verdict"], body["neutralization"], body["explanation"]
    assert verdict["flagged"] is True
    assert verdict["p_value"] <= verdict["p_cutoff"]
    assert [entry["p_value"] for entry in verdict["evidence"]] == sorted(e["p_value"] for e in verdict["evidence"])
    by_name = {entry["name"]: entry for entry in verdict["evidence"]}
    assert set(by_name) == {"neuron_sensitivity", "margin_drop"}
    assert by_name["neuron_sensitivity"]["layer"] == "stem"
    assert by_name["margin_drop"]["layer"] is None
    assert [layer["name"] for layer in verdict["layers"]] == ["stem", "stage1"]
    assert verdict["layers"][0]["deviation"] > verdict["layers"][0]["benign_95"]
    assert (neutralization["region"], neutralization["changed"], neutralization["served"]) == ("roa", True, True)
    assert (neutralization["before"]["label"], neutralization["after"]["label"]) == ("blue", "red")
    assert (explanation["label"], explanation["pixels"]) == ("red", "neutralized")
    assert explanation["companion"] == {"label": "red", "index": 0, "agrees": True} | {
        "probability": explanation["companion"]["probability"]
    }
    for name in ("saliency", "roi", "roa", "neutral_mask", "neutral_pixels"):
        picture = explanation[name]
        image = Image.open(io.BytesIO(base64.b64decode(picture["data"])))
        assert (picture["media_type"], image.size) == ("image/png", (16, 16))
        assert (picture["height"], picture["width"]) == (16, 16)
    assert len(body["top"]) == 1


def test_saliency_alone(api: FastAPI) -> None:
    explanation = call(api, "POST", "/v1/predict?explain=saliency", content=CLEAN).json()["explanation"]
    assert explanation["pixels"] == "input"
    assert explanation["saliency"]
    assert {explanation[name] for name in ("roi", "roa", "neutral_mask", "neutral_pixels", "companion")} == {None}


def test_multipart(api: FastAPI) -> None:
    raw = call(api, "POST", "/v1/predict", content=CLEAN).json()
    form = call(api, "POST", "/v1/predict", files={"image": ("x.png", CLEAN, "image/png")}).json()
    assert form["prediction"] == raw["prediction"]
    text = call(api, "POST", "/v1/predict", files={"image": (None, "http://127.0.0.1/secret.png")})
    assert "text, expected one file" in problem(text, 422, "bad_parameter")
    other = call(api, "POST", "/v1/predict", files={"file": ("x.png", CLEAN, "image/png")})
    assert "missing" in problem(other, 422, "bad_parameter")
    wrong = call(api, "POST", "/v1/predict", files={"image": ("x.txt", CLEAN, "text/plain")})
    problem(wrong, 415, "unsupported_media_type")
    empty = call(api, "POST", "/v1/predict", files={"image": ("x.png", b"", "image/png")})
    problem(empty, 400, "empty_body")
    broken = call(api, "POST", "/v1/predict", content=b"x", headers={"Content-Type": "multipart/form-data"})
    problem(broken, 422, "bad_parameter")
    two = {"files": [("image", ("a.png", CLEAN, "image/png")), ("image", ("b.png", CLEAN, "image/png"))]}
    problem(call(api, "POST", "/v1/predict", **two), 422, "bad_parameter")


def test_mangled_forms_are_the_senders_fault(api: FastAPI) -> None:
    part = b'--B\r\nContent-Disposition: form-data; name="image"; filename="a.png"\r\nContent-Type: image/png\r\n\r\n'
    rng = random.Random(0)
    for _ in range(100):
        body = bytearray(part + CLEAN + b"\r\n--B--\r\n")
        for _ in range(rng.randint(1, 6)):
            body[rng.randrange(len(part))] = rng.randrange(256)
        boundary = rng.choice([b"B", b"B", b"B", b"", b'"\xff\xfe"', b"x" * 300])
        headers = {"Content-Type": b"multipart/form-data; boundary=" + boundary}
        response = call(
            api, "POST", "/v1/predict", content=bytes(body[: len(body) - rng.choice([0, 0, 50])]), headers=headers
        )
        assert response.status_code in (200, 400, 415, 422), (bytes(body), boundary)


def test_explain_answers_json_or_a_picture(api: FastAPI) -> None:
    assert call(api, "POST", "/v1/explain", content=CLEAN).json()["explanation"]["roi"] is not None
    picture = call(api, "POST", "/v1/explain", content=PATCHED, headers={"Accept": "image/png"})
    assert picture.headers["content-type"] == "image/png"
    assert picture.headers["x-palisade-flagged"] == "true"
    assert picture.content.startswith(b"\x89PNG")
    both = {"Accept": "application/json, image/png;q=0.5"}
    assert call(api, "POST", "/v1/explain", content=CLEAN, headers=both).json()["prediction"]


def test_models(api: FastAPI) -> None:
    (summary,) = call(api, "GET", "/v1/models").json()["models"]
    assert (summary["name"], summary["default"], summary["classes"], summary["provider"]) == ("tiny", True, 3, "cpu")
    detail = call(api, "GET", "/v1/models/tiny").json()
    assert detail["manifest"]["classes"] == ["red", "green", "blue"]
    assert detail["card"] is None
    problem(call(api, "GET", "/v1/models/none"), 404, "unknown_model")


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ("top_k=-1", "top_k"),
        ("top_k=0", "greater than or equal to 1"),
        ("top_k=4", "1 to 3"),
        ("top_k=x", "integer"),
        ("explain=some", "'none', 'saliency' or 'all'"),
    ],
)
def test_bad_parameters_say_what_is_allowed(api: FastAPI, query: str, said: str) -> None:
    detail = problem(call(api, "POST", f"/v1/predict?{query}", content=CLEAN), 422, "bad_parameter")
    assert said in detail


def test_routes_and_methods_that_do_not_exist(api: FastAPI) -> None:
    problem(call(api, "GET", "/nothing/here"), 404, "not_found")
    refused = call(api, "GET", "/v1/predict")
    problem(refused, 405, "method_not_allowed")
    assert refused.headers["allow"] == "POST"
    problem(call(api, "PUT", "/v1/models"), 405, "method_not_allowed")


def test_not_ready_before_models_are_loaded() -> None:
    app = create_api(Settings())
    response = call(app, "POST", "/v1/predict", content=CLEAN)
    problem(response, 503, "not_ready")
    assert response.headers["retry-after"] == "1"


def test_block_policy_answers_403(bundle_folder: Path) -> None:
    app = create_api(Settings())
    pipeline = load_pipeline(bundle_folder, Settings(policy="block", threads=1))
    app.state.registry = Registry([pipeline])
    before = value("palisade_requests_total", model="tiny", outcome="blocked")
    assert "p-value" in problem(call(app, "POST", "/v1/predict", content=PATCHED), 403, "blocked_by_policy")
    problem(
        call(app, "POST", "/v1/explain", content=PATCHED, headers={"Accept": "image/png"}), 403, "blocked_by_policy"
    )
    assert call(app, "POST", "/v1/predict", content=CLEAN).status_code == 200
    assert value("palisade_requests_total", model="tiny", outcome="blocked") == before + 2


def test_decisions_and_refusals_are_counted(api: FastAPI) -> None:
    series = {
        "ok": ("palisade_requests_total", {"model": "tiny", "outcome": "ok"}),
        "flagged": ("palisade_requests_total", {"model": "tiny", "outcome": "flagged"}),
        "rejected": ("palisade_requests_total", {"model": "tiny", "outcome": "rejected"}),
        "red": ("palisade_predictions_total", {"model": "tiny", "label": "red"}),
        "changed": ("palisade_neutralized_total", {"model": "tiny", "changed": "true"}),
        "p": ("palisade_p_value_count", {"model": "tiny"}),
        "stem": ("palisade_layer_deviation_count", {"model": "tiny", "layer": "stem"}),
        "engine": ("palisade_stage_seconds_count", {"stage": "engine"}),
        "respond": ("palisade_stage_seconds_count", {"stage": "respond"}),
        "empty": ("palisade_rejected_total", {"code": "empty_body"}),
    }
    before = {key: value(name, **labels) for key, (name, labels) in series.items()}
    call(api, "POST", "/v1/predict", content=CLEAN)
    call(api, "POST", "/v1/predict", content=PATCHED)
    call(api, "POST", "/v1/predict", content=b"")
    grown = {key: value(name, **labels) - before[key] for key, (name, labels) in series.items()}
    assert grown == {
        "ok": 1,
        "flagged": 1,
        "rejected": 1,
        "red": 2,
        "changed": 1,
        "p": 2,
        "stem": 2,
        "engine": 2,
        "respond": 2,
        "empty": 1,
    }
    text = call(api, "GET", "/metrics").text
    assert 'palisade_model_info{model="tiny",precision="fp32",provider="cpu",version="1.0.0"} 1.0' in text
    assert 'palisade_expected_flag_rate{model="tiny"} 0.01' in text


def test_unexpected_failures_are_problems_too(api: FastAPI, pipeline: Pipeline) -> None:
    class Broken:
        bundle = pipeline.bundle

        def decode(self, data: bytes) -> None:
            raise RuntimeError("secret")

    api.state.registry = Registry([Broken()])  # type: ignore[list-item]
    response = call(api, "POST", "/v1/predict", content=CLEAN)
    problem(response, 500, "internal_error")
    assert "secret" not in response.text


def test_a_full_house_is_overloaded(pipeline: Pipeline) -> None:
    app = create_api(Settings(decode_threads=1, max_waiting=0, request_timeout=0.3))
    released, photo = threading.Event(), encode(clean_image(), "JPEG")

    class Slow:
        bundle, votes = pipeline.bundle, pipeline.votes

        def decode(self, data: bytes) -> Any:
            released.wait(5)
            return pipeline.decode(data)

    app.state.registry = Registry([Slow()])  # type: ignore[list-item]

    async def several() -> list[httpx.Response]:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            both = list(await asyncio.gather(*(client.post("/v1/predict", content=photo) for _ in range(2))))
            # The first one's thread is still at work, so its place is not free.
            return [*both, await client.post("/v1/predict", content=photo)]

    try:
        responses = asyncio.run(several())
    finally:
        released.set()
        app.state.dispatcher.close()
    details = [problem(response, 503, "overloaded") for response in responses]
    full = "too many images are waiting"
    assert sorted(details) == ["no answer within 0.3 s", full, full]
    assert all(response.headers["retry-after"] == "1" for response in responses)


def test_a_poisoned_image_in_a_batch_fails_alone(api: FastAPI, pipeline: Pipeline) -> None:
    class Poisoned(Pipeline):
        def run(self, batch: Sequence[Work]) -> list[Pass | PalisadeError]:
            if any(work.pixels.max() == 0 for work in batch):
                raise RuntimeError("poison")
            return super().run(batch)

    api.state.registry = Registry([Poisoned(pipeline.bundle, pipeline.engine, pipeline.judge)])
    black = encode(np.zeros_like(clean_image()))

    async def together() -> list[httpx.Response]:
        transport = httpx.ASGITransport(entrance(api))
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            images = [CLEAN, CLEAN, black, CLEAN, CLEAN]
            return list(await asyncio.gather(*(client.post("/v1/predict", content=image) for image in images)))

    assert [response.status_code for response in asyncio.run(together())] == [200, 200, 500, 200, 200]


def test_bodies_are_limited_as_they_arrive(api: FastAPI) -> None:
    async def endless() -> AsyncIterator[bytes]:
        for _ in range(10_000):
            sent.append(1)
            yield bytes(10_000)

    sent: list[int] = []
    response = call(api, "POST", "/v1/predict", content=endless())
    problem(response, 413, "image_too_large")
    declared = call(api, "POST", "/v1/predict", content=bytes(100_001))
    assert "100001 bytes" in problem(declared, 413, "image_too_large")


def test_slow_bodies_time_out(api: FastAPI) -> None:
    async def slow() -> AsyncIterator[bytes]:
        yield CLEAN[:10]
        await asyncio.sleep(1.5)
        yield CLEAN[10:]

    problem(call(api, "POST", "/v1/predict", content=slow()), 408, "request_timeout")


def test_openapi_names_every_route_and_error(api: FastAPI) -> None:
    document = call(api, "GET", "/openapi.json").json()
    assert {"/v1/predict", "/v1/explain", "/v1/models", "/v1/models/{name}", "/v1/session"} <= set(document["paths"])
    responses = document["paths"]["/v1/predict"]["post"]["responses"]
    assert {"401", "403", "413", "415", "422", "429", "503"} <= set(responses)
    assert call(api, "GET", "/").json()["links"]


def test_every_code_that_can_be_answered_is_in_the_openapi_document(api: FastAPI) -> None:
    document = call(api, "GET", "/docs.json").text
    # Errors of other modules are those of the command line.
    classes = [error for error in vars(errors).values() if isinstance(error, type) and issubclass(error, PalisadeError)]
    scan = {"damaged_shard", "archive_unreachable", "ray_unavailable", "worker_lost"}
    never_answered = {"invalid_configuration", "unreadable_file", "pull_failed", *scan}
    missing = {error.code for error in classes if f"`{error.code}`" not in document}
    assert missing <= never_answered
