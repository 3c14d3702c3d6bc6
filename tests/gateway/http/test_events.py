"""/v1/events over HTTP, in process, on SQLite."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx
import pytest
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.responses import Response

from gateway.access.auth import Caller
from gateway.audit.store import AuditStore
from gateway.audit.trail import Audit
from gateway.errors import AuditUnavailable, PalisadeError
from gateway.http.problems import from_validation, problem_response
from gateway.http.routes import events as routes
from gateway.settings import Settings
from tests.gateway.audit.records import record

REVIEWER = Caller(key_id="rita", role="reviewer", disclosure="full")
CLIENT = Caller(key_id="carl", role="client", disclosure="full")


@pytest.fixture
def api(store: AuditStore) -> FastAPI:
    app = FastAPI()
    app.state.audit = Audit(Settings())
    app.state.audit.store = store
    app.state.caller = REVIEWER

    @app.middleware("http")
    async def caller(request: Request, call_next: Any) -> Response:
        request.state.caller = app.state.caller
        return await call_next(request)

    async def on_error(request: Request, error: Exception) -> Response:
        known = from_validation(error) if isinstance(error, RequestValidationError) else error
        assert isinstance(known, PalisadeError)
        return problem_response(known, request.scope)

    app.add_exception_handler(PalisadeError, on_error)
    app.add_exception_handler(RequestValidationError, on_error)
    app.include_router(routes.router)
    store.insert([record(i) for i in range(5)])
    return app


def call(app: FastAPI, method: str, url: str, **request: Any) -> httpx.Response:
    async def send() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://gateway") as client:
            return await client.request(method, url, **request)

    return asyncio.run(send())


def problem(response: httpx.Response, status: int, code: str) -> None:
    assert (response.status_code, response.json()["code"]) == (status, code)


def test_pages(api: FastAPI) -> None:
    seen: list[int] = []
    cursor: str | None = ""
    while cursor is not None:
        url = "/v1/events?limit=2" + (f"&cursor={cursor}" if cursor else "")
        body = call(api, "GET", url).json()
        seen += [int(event["id"]) for event in body["events"]]
        cursor = body["next"]
    assert seen == [4, 3, 2, 1, 0]


def test_filters_and_times(api: FastAPI) -> None:
    def found(query: str) -> list[int]:
        return [int(event["id"]) for event in call(api, "GET", "/v1/events?" + query).json()["events"]]

    assert found("since=2026-01-01T12:00:03") == [4, 3]
    assert found("until=2026-01-01T13:00:01%2B01:00") == [0]
    assert found("kind=blocked") == []
    assert found("model=tiny&flagged=true&review=none&limit=1") == [4]


@pytest.mark.parametrize(
    "query",
    [
        "limit=0",
        "limit=201",
        "kind=odd",
        "review=maybe",
        "flagged=perhaps",
        "anomaly=odd",
        "since=yesterday",
        "since=0001-01-01T00:00:00%2B01:01",
        "until=9999-12-31T23:59:59-01:00",
        "model=a%00b",
        "cursor=" + "x" * 41,
    ],
)
def test_bad_parameters(api: FastAPI, query: str) -> None:
    problem(call(api, "GET", "/v1/events?" + query), 422, "bad_parameter")


def test_one_event_and_its_pictures(api: FastAPI) -> None:
    key = record(3).event.id
    event = call(api, "GET", f"/v1/events/{key}").json()
    assert (event["before"]["label"], event["pictures"], event["evidence"]["margin_drop"]) == (
        "blue",
        ["input", "roa"],
        0.02,
    )
    png = call(api, "GET", f"/v1/events/{key}/image?kind=roa")
    assert (png.content, png.headers["content-type"], png.headers["x-content-type-options"]) == (
        b"map",
        "image/png",
        "nosniff",
    )
    problem(call(api, "GET", f"/v1/events/{key}/image?kind=saliency"), 404, "unknown_event")
    problem(call(api, "GET", f"/v1/events/{key}/image?kind=secret"), 422, "bad_parameter")
    problem(call(api, "GET", "/v1/events/nothing"), 404, "unknown_event")


def test_a_review(api: FastAPI) -> None:
    url = f"/v1/events/{record(2).event.id}"
    event = call(api, "PATCH", url, json={"review": "confirmed", "note": "patch on a sign"}).json()
    assert (event["review"], event["note"], event["reviewer"]) == ("confirmed", "patch on a sign", "rita")
    assert call(api, "GET", url).json() == event
    assert call(api, "PATCH", url, json={"review": None}).json()["note"] == "patch on a sign"
    stats = call(api, "GET", "/v1/events/stats").json()
    assert (stats["events"], stats["by_kind"]["flagged"], stats["by_review"]["none"]) == (5, 5, 5)
    problem(call(api, "PATCH", "/v1/events/nothing", json={"review": "confirmed"}), 404, "unknown_event")


@pytest.mark.parametrize(
    "body",
    [
        "{}",
        "[]",
        "{",
        '{"review": "maybe"}',
        '{"reviewer": "me"}',
        '{"note": "a\\u0000b"}',
        '{"note": "\\ud800"}',
        '{"note": null}',
        json.dumps({"note": "x" * 1001}),
    ],
)
def test_bad_reviews(api: FastAPI, body: str) -> None:
    url = f"/v1/events/{record(2).event.id}"
    response = call(api, "PATCH", url, content=body, headers={"Content-Type": "application/json"})
    problem(response, 422, "bad_parameter")


@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", ""), ("GET", "/stats"), ("GET", "/stream"), ("GET", "/x"), ("GET", "/x/image"), ("PATCH", "/x")],
)
def test_reviewers_only(api: FastAPI, method: str, path: str) -> None:
    api.state.caller = CLIENT
    problem(call(api, method, "/v1/events" + path, json={"review": "confirmed"}), 403, "forbidden")


def test_without_a_trail_or_its_store_the_answer_says_so(api: FastAPI, monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(*_: object, **__: object) -> None:
        raise AuditUnavailable("the audit store does not answer")

    monkeypatch.setattr(AuditStore, "page", gone)
    problem(call(api, "GET", "/v1/events"), 503, "audit_unavailable")
    api.state.audit = Audit(Settings())
    problem(call(api, "GET", "/v1/events/stats"), 503, "audit_unavailable")


def test_the_stream_tells_new_events_and_resumes(store: AuditStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(routes, "POLL_SECONDS", 0.01)
    monkeypatch.setattr(routes, "HEARTBEAT_SECONDS", 0.02)
    store.insert([record(i) for i in range(3)])

    async def follow() -> list[str]:
        follower = routes._follow(store, 2, lambda: True)
        told = [await anext(follower) for _ in range(2)]
        while not (beat := await anext(follower)).startswith(":"):
            pass
        told.append(beat)
        store.insert([record(9)])
        while (line := await anext(follower)).startswith(":"):
            pass
        told.append(line)
        await follower.aclose()  # type: ignore[attr-defined]
        return told

    _, second, beat, fourth = asyncio.run(follow())
    assert second.startswith("id: 3\nevent: event\ndata: {")
    assert beat == ": still here\n\n"
    assert json.loads(fourth.split("data: ")[1])["id"] == record(9).event.id
    assert routes._streams == 0


def test_a_stream_ends_when_its_reader_may_no_longer_read(store: AuditStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(routes, "POLL_SECONDS", 0.01)
    store.insert([record(i) for i in range(3)])
    allowed = iter([True, False])

    async def follow() -> list[str]:
        return [line async for line in routes._follow(store, 0, lambda: next(allowed))]

    assert len(asyncio.run(follow())) == 1 + 3
    assert routes._streams == 0


def test_streams_are_bounded(api: FastAPI, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(routes, "_streams", routes.MAX_STREAMS)
    problem(call(api, "GET", "/v1/events/stream"), 503, "overloaded")
    monkeypatch.setattr(routes, "_streams", 0)
    problem(call(api, "GET", "/v1/events/stream", headers={"Last-Event-ID": "x"}), 422, "bad_parameter")
