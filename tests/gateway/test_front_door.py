"""Plain requests take the short way, all others the routes, and nobody can tell which one was taken."""

from __future__ import annotations

import asyncio
import gzip
import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from starlette.types import Receive, Scope, Send

from gateway.app import create_api, layers
from gateway.core.pipeline import Pipeline
from gateway.front_door import FrontDoor
from gateway.settings import Settings
from gateway.versions.registry import Registry
from tests.gateway.tiny import SIZE, clean_image, encode, patched_image

CLEAN = encode(clean_image())
PNG = {"Content-Type": "image/png"}
PIXELS = {"name": "pixels", "shape": [1, SIZE, SIZE, 3], "datatype": "UINT8", "data": clean_image().ravel().tolist()}
INFER = json.dumps({"inputs": [PIXELS], "id": "7"}).encode()
PREDICT, MODEL = "/v1/predict", "/v2/models/tiny/infer"

SHORT: list[tuple[str, bytes, dict[str, str]]] = [
    (PREDICT, CLEAN, PNG),
    (PREDICT, CLEAN, {}),
    (PREDICT, encode(patched_image()), PNG),
    (PREDICT, encode(clean_image(), "JPEG"), PNG),
    (f"{PREDICT}?explain=saliency&top_k=2&model=tiny", CLEAN, PNG),
    (f"{PREDICT}?explain=all", CLEAN, PNG),
    (f"{PREDICT}?top_k=99", CLEAN, PNG),
    (f"{PREDICT}?model=tyni", CLEAN, PNG),
    (PREDICT, b"", PNG),
    (PREDICT, b"no image", PNG),
    (PREDICT, CLEAN[:-20], PNG),
    (PREDICT, CLEAN, {"Content-Type": "text/plain"}),
    (PREDICT, bytes(200_000), PNG),
    (PREDICT, CLEAN, {**PNG, "Authorization": "Bearer stranger"}),
    (MODEL, INFER, {}),
    ("/v2/models/tiny/versions/1.0.0/infer", INFER, {}),
    ("/v2/models/tiny/versions/9.9.9/infer", INFER, {}),
    ("/v2/models/none/infer", INFER, {}),
    (MODEL, b"{", {}),
    (MODEL, b"", {}),
    (MODEL, INFER, {"Inference-Header-Content-Length": "x"}),
]
LONG: list[tuple[str, str, bytes, dict[str, str]]] = [
    ("POST", f"{PREDICT}?certify=patch&certify_level=agreed", CLEAN, PNG),
    ("POST", f"{PREDICT}?explain=no", CLEAN, PNG),
    ("POST", f"{PREDICT}?top_k=0", CLEAN, PNG),
    ("POST", f"{PREDICT}?top_k=2&top_k=3", CLEAN, PNG),
    ("POST", f"{PREDICT}?top=3", CLEAN, PNG),
    ("POST", f"{PREDICT}?explain", CLEAN, PNG),
    ("POST", f"{PREDICT}?&", CLEAN, PNG),
    ("POST", f"{PREDICT}?model=%74iny", CLEAN, PNG),
    ("POST", f"{PREDICT}?model={'t' * 200}", CLEAN, PNG),
    ("POST", f"{PREDICT}/", CLEAN, PNG),
    ("POST", PREDICT, gzip.compress(CLEAN), {**PNG, "Content-Encoding": "gzip"}),
    ("POST", PREDICT, CLEAN, {**PNG, "Content-Encoding": "br"}),
    ("POST", PREDICT, b"--x--", {"Content-Type": "Multipart/form-data; boundary=x"}),
    ("POST", "/v1/explain", CLEAN, PNG),
    ("POST", f"{MODEL}?x=1", INFER, {}),
    ("POST", "/v2/models/ti%0Any/infer", INFER, {}),
    ("POST", "/v2/models/a/b/infer", INFER, {}),
    ("GET", PREDICT, b"", {}),
    ("PUT", MODEL, INFER, {}),
]


@pytest.fixture
def api(pipeline: Pipeline) -> Iterator[FastAPI]:
    app = create_api(Settings(max_body_bytes=100_000, audit=False))
    app.state.registry = Registry([pipeline])
    yield app
    app.state.dispatcher.close()


class Door:
    """The front door of an application, and the number of requests that it sent on to the routes."""

    def __init__(self, api: FastAPI) -> None:
        self.sent_on = 0
        self._api = api
        self.app = FrontDoor(self._routes, api=api, layers=layers(api))

    async def _routes(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.sent_on += 1
        await self._api(scope, receive, send)


def call(app: Any, method: str, url: str, content: bytes, headers: dict[str, str]) -> httpx.Response:
    async def send() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as client:
            return await client.request(method, url, content=content, headers=headers)

    return asyncio.run(send())


def shown(response: httpx.Response) -> tuple[int, dict[str, str], Any]:
    """What a caller sees, without what differs from request to request."""
    headers = {name: value for name, value in response.headers.items() if name != "x-request-id"}
    headers.pop("content-length", None)
    body = response.json()
    for name in ("id", "instance") if response.headers.get("x-request-id", "-") in response.text else ():
        body.pop(name, None)
    body.pop("timing_ms", None)
    return response.status_code, headers, body


@pytest.mark.parametrize(("url", "content", "headers"), SHORT, ids=[f"{i} {url}" for i, (url, *_) in enumerate(SHORT)])
def test_the_short_way_gives_the_very_answer_of_the_routes(
    api: FastAPI, url: str, content: bytes, headers: dict[str, str]
) -> None:
    door = Door(api)
    short, long = call(door.app, "POST", url, content, headers), call(api, "POST", url, content, headers)
    assert door.sent_on == 0
    assert shown(short) == shown(long)
    assert short.headers["x-request-id"] != long.headers["x-request-id"]


@pytest.mark.parametrize(
    ("method", "url", "content", "headers"), LONG, ids=[f"{i} {m} {url[:60]}" for i, (m, url, *_) in enumerate(LONG)]
)
def test_what_is_not_plain_goes_to_the_routes(
    api: FastAPI, method: str, url: str, content: bytes, headers: dict[str, str]
) -> None:
    door = Door(api)
    assert shown(call(door.app, method, url, content, headers)) == shown(call(api, method, url, content, headers))
    assert door.sent_on == 1


def test_an_unexpected_failure_is_answered_in_our_shape(api: FastAPI, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("secret")

    monkeypatch.setattr(api.state.dispatcher, "decide", fail)
    response = call(Door(api).app, "POST", PREDICT, CLEAN, PNG)
    assert (response.status_code, response.json()["code"]) == (500, "internal_error")
    assert "secret" not in response.text


def test_a_client_that_leaves_is_no_failure(api: FastAPI) -> None:
    sent = []

    async def leave() -> dict[str, Any]:
        return {"type": "http.disconnect"}

    async def keep(message: Any) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "method": "POST",
        "path": PREDICT,
        "query_string": b"",
        "headers": [(b"host", b"localhost")],
        "client": ("127.0.0.1", 1),
        "state": {},
    }
    asyncio.run(Door(api).app(scope, leave, keep))
    assert sent[0]["status"] == 499
