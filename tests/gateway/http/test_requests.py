"""What no request may hold, on every route: parameters that do not exist, codings, bodies and forms of another kind."""

from __future__ import annotations

import asyncio
import gzip
import json
import zlib
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from fastapi.routing import APIRoute

from gateway.app import ROUTERS, create_api
from gateway.core.pipeline import Pipeline
from gateway.http.strict import StrictRoute
from gateway.names import nearest, unknown
from gateway.settings import Settings
from gateway.versions.registry import Registry
from tests.gateway.http.ways import WAYS, by, entrance
from tests.gateway.tiny import clean_image, encode

CLEAN = encode(clean_image())
PNG = {"Content-Type": "image/png"}
MAX_BYTES = 100_000
ROUTES = [
    (method, route)
    for router in ROUTERS
    for route in router.routes
    if isinstance(route, APIRoute) and isinstance(route, StrictRoute)
    for method in sorted(route.methods or ())
]
IDS = [f"{method} {route.path}" for method, route in ROUTES]


@pytest.fixture(scope="module", params=WAYS)
def api(pipeline: Pipeline, request: pytest.FixtureRequest) -> Iterator[FastAPI]:
    app = by(request.param, create_api(Settings(max_body_bytes=MAX_BYTES, audit=False)))
    app.state.registry = Registry([pipeline])
    yield app
    app.state.dispatcher.close()


def call(app: FastAPI, method: str, url: str, **request: Any) -> httpx.Response:
    async def send() -> httpx.Response:
        transport = httpx.ASGITransport(entrance(app))
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            return await client.request(method, url, **request)

    return asyncio.run(send())


def refused(response: httpx.Response, status: int = 422, code: str = "bad_parameter") -> str:
    body = response.json()
    assert (response.status_code, body["code"]) == (status, code), body
    return str(body["detail"])


def filled(route: APIRoute) -> str:
    return route.path.format(model="tiny", version="1.0.0", name="tiny", file="0.png", event_id="x", campaign_id="x")


def test_names_are_matched_by_what_was_probably_meant() -> None:
    known = ["model", "explain", "top_k"]
    for given, meant in (("explian", "explain"), ("MODEL", "model"), ("top-k", "top_k"), ("topk", "top_k")):
        assert nearest(given, known) == meant
    assert unknown("parameter", "explian", known) == "unknown parameter 'explian'; did you mean 'explain'?"
    assert unknown("parameter", "zzz", known) == "unknown parameter 'zzz'; known here: model, explain, top_k"
    assert unknown("parameter", "zzz", []).endswith("known here: none")
    assert len(unknown("parameter", "x\n" * 10_000, known)) < 250


def test_every_route_of_the_interface_is_strict_but_for_probes() -> None:
    lax = {
        route.path
        for router in ROUTERS
        for route in router.routes
        if isinstance(route, APIRoute) and not isinstance(route, StrictRoute)
    }
    assert {path for path in lax if not path.endswith("/ready")} == {"/v2/health/live", "/console/{digest}/{name:path}"}
    assert len(ROUTES) > 20


@pytest.mark.parametrize(("method", "route"), ROUTES, ids=IDS)
def test_a_parameter_that_does_not_exist_is_refused_everywhere(api: FastAPI, method: str, route: StrictRoute) -> None:
    headers = {"Content-Type": "application/json"} if "/v1/" in route.path else {}

    if route.body_field is None:
        body = b""
    elif "review" in route.path or method == "PATCH":
        body = b'{"review": null}'
    else:
        body = b'{"version": "1"}'
    detail = refused(call(api, method, filled(route) + "?zzzz=1", content=body, headers=headers))
    assert "unknown parameter 'zzzz'" in detail
    for name in route.query_names:
        slip = name + name[-1]
        detail = refused(call(api, method, f"{filled(route)}?{slip}=1", content=body, headers=headers))
        assert f"did you mean '{nearest(slip, route.query_names)}'" in detail


@pytest.mark.parametrize(("method", "route"), ROUTES, ids=IDS)
def test_the_document_has_what_every_route_refuses(api: FastAPI, method: str, route: StrictRoute) -> None:
    document = call(api, "GET", "/openapi.json").json()["paths"][route.path][method.lower()]
    assert "`bad_parameter`" in document["responses"]["422"]["description"]
    assert "application/problem+json" in document["responses"]["422"]["content"]
    error = document["responses"]["422"]["content"]["application/problem+json"]["schema"]["properties"].get("error")
    assert (error is not None) is route.path.startswith("/v2")
    if method in ("POST", "PATCH"):
        assert "`unsupported_media_type`" in document["responses"]["415"]["description"]
    declared = {each["name"] for each in document.get("parameters", []) if each["in"] == "query"}
    assert declared == set(route.query_names)


def test_probes_and_pages_ignore_queries(api: FastAPI) -> None:
    for path in ("/v2/health/live", "/v2/health/ready", "/v2/models/tiny/ready", "/metrics", "/", "/openapi.json"):
        assert call(api, "GET", path + "?now=123&now=124").status_code == 200, path


@pytest.mark.parametrize("query", ["explain=none&explain=all", "model=tiny&model=other&model=tiny", "top_k=1&top_k=2"])
def test_a_parameter_given_twice_with_different_values(api: FastAPI, query: str) -> None:
    assert "different values" in refused(call(api, "POST", f"/v1/predict?{query}", content=CLEAN))


def test_a_parameter_given_twice_with_one_value_is_that_value(api: FastAPI) -> None:
    body = call(api, "POST", "/v1/predict?top_k=1&top_k=1", content=CLEAN).json()
    assert len(body["top"]) == 1


@pytest.mark.parametrize(
    "field", ["model", "explain", "top_k", "Model", "explian", "imgae", "Image", "zzz", "", "x" * 500]
)
@pytest.mark.parametrize("as_file", [False, True])
def test_a_form_has_the_image_alone(api: FastAPI, field: str, as_file: bool) -> None:
    other = (field, ("x.txt" if as_file else None, b"tiny"))
    detail = refused(
        call(api, "POST", "/v1/predict", files=[other, ("image", ("x.png", CLEAN, "image/png"))][: 1 + (not as_file)])
    )
    assert len(detail) < 250
    if nearest(field, ["model", "explain", "top_k"]):
        assert "in the query, as ?" in detail


def test_forms_say_what_was_meant(api: FastAPI) -> None:
    image = ("image", ("x.png", CLEAN, "image/png"))
    detail = refused(call(api, "POST", "/v1/predict", files=[image, ("model", (None, b"other"))]))
    assert detail == "form field 'model': the form has the file 'image' alone; give 'model' in the query, as ?model=..."
    detail = refused(call(api, "POST", "/v1/predict", files=[("imgae", image[1])]))
    assert detail == "unknown form field 'imgae'; did you mean 'image'?"
    assert "given twice" in refused(call(api, "POST", "/v1/predict", files=[image, ("image", (None, b"x"))]))
    # The route of all maps has no parameter `explain`.
    refused(call(api, "POST", "/v1/explain", files=[image, ("explain", (None, b"all"))]))
    refused(call(api, "POST", "/v1/explain?explain=all", content=CLEAN))


def members(data: bytes, count: int) -> bytes:
    size = -(-len(data) // count)
    return b"".join(gzip.compress(data[i : i + size]) for i in range(0, len(data), size))


FORM = b'--B\r\nContent-Disposition: form-data; name="image"; filename="a.png"\r\n\r\n' + CLEAN + b"\r\n--B--\r\n"
TENSOR = json.dumps(
    {
        "inputs": [
            {"name": "pixels", "shape": [1, 16, 16, 3], "datatype": "UINT8", "data": clean_image().ravel().tolist()}
        ]
    }
).encode()
BODIES = {
    "image": ("/v1/predict", CLEAN, PNG),
    "picture": ("/v1/explain", CLEAN, PNG),
    "form": ("/v1/predict", FORM, {"Content-Type": "multipart/form-data; boundary=B"}),
    "tensor": ("/v2/models/tiny/infer", TENSOR, {"Content-Type": "application/json"}),
}


@pytest.mark.parametrize("kind", BODIES)
def test_codings_of_images(api: FastAPI, kind: str) -> None:
    path, body, headers = BODIES[kind]

    def send(content: bytes, coding: str | list[str]) -> httpx.Response:
        given = [("Content-Encoding", each) for each in ([coding] if isinstance(coding, str) else coding)]
        return call(api, "POST", path, content=content, headers=[*headers.items(), *given])

    for coding, sent in (
        ("gzip", gzip.compress(body)),
        ("GZip", members(body, 3)),
        ("x-gzip", gzip.compress(b"") + members(body, 50) + gzip.compress(b"")),
        ("deflate", zlib.compress(body)),
        ("identity", body),
        ("identity, gzip", gzip.compress(body)),
        ("", body),
    ):
        assert send(sent, coding).status_code == 200, coding
    whole = members(body, 3)
    for coding, sent in (
        ("gzip", whole + b"x"),
        ("gzip", whole + b"\0"),
        ("gzip", whole + b"\x1f\x8b"),
        ("gzip", gzip.compress(body) + zlib.compress(body)),
        ("gzip", whole[:-1]),
        ("gzip", whole[:-9]),
        ("gzip", gzip.compress(body)[:5]),
        ("gzip", whole[:-6] + bytes([whole[-6] ^ 1]) + whole[-5:]),  # its checksum
        ("gzip", body),
        ("gzip", zlib.compress(body)),
        ("deflate", gzip.compress(body)),
        ("deflate", zlib.compress(body) + b"x"),
        ("deflate", zlib.compress(body) * 2),
        ("deflate", zlib.compress(body)[:-1]),
    ):
        refused(send(sent, coding))
    twice = gzip.compress(gzip.compress(body))
    for unsupported in (
        "br",
        "zstd",
        "compress",
        "gzip, gzip",
        "gzip,deflate",
        "gzip;q=1",
        "x" * 500,
        ["gzip", "gzip"],
    ):
        response = send(twice, unsupported)
        assert "gzip and deflate" in refused(response, 415, "unsupported_media_type")
        assert response.headers["accept-encoding"] == "gzip, deflate"
    assert refused(send(b"", "gzip"), *((422, "bad_parameter") if kind == "form" else (400, "empty_body")))
    # One coding inside another is no image, form or JSON.
    assert send(twice, "gzip").status_code in (415, 422)


@pytest.mark.parametrize("kind", BODIES)
def test_a_bomb_is_bounded_over_all_its_members(api: FastAPI, kind: str) -> None:
    path, body, headers = BODIES[kind]
    one = gzip.compress(bytes(MAX_BYTES // 4))
    for bomb in (gzip.compress(bytes(10**7)), gzip.compress(body) + one * 5, one * 100, zlib.compress(bytes(10**7))):
        coding = {"Content-Encoding": "gzip" if bomb.startswith(b"\x1f") else "deflate"}
        response = call(api, "POST", path, content=bomb, headers=headers | coding)
        refused(response, 413, "image_too_large")


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", "/v1/admin/models/tiny/activate", {"version": "1"}),
        ("POST", "/v1/admin/models/scan", None),
        ("PATCH", "/v1/events/x", {"review": None}),
        ("POST", "/v1/session", {"key": "x"}),
        ("POST", "/v2/repository/index", {}),
    ],
)
def test_other_bodies_have_no_coding(api: FastAPI, method: str, path: str, body: object) -> None:
    headers = {"Content-Type": "application/json", "Content-Encoding": "gzip"}
    response = call(api, method, path, content=gzip.compress(json.dumps(body).encode()), headers=headers)
    refused(response, 415, "unsupported_media_type")
    assert response.headers["accept-encoding"] == "identity"


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", "/v1/admin/models/tiny/activate", {"verison": "1"}),
        ("POST", "/v1/admin/models/tiny/activate", {"version": "1", "force": True}),
        ("POST", "/v1/admin/models/tiny/activate", {"version": 1}),
        ("POST", "/v1/admin/models/tiny/activate", {"version": 1.0}),
        ("POST", "/v1/admin/models/tiny/activate", {"version": True}),
        ("POST", "/v1/admin/models/tiny/activate", {"version": None}),
        ("POST", "/v1/admin/models/tiny/activate", {"version": ["1"]}),
        ("POST", "/v1/admin/models/tiny/shadow", {}),
        ("POST", "/v1/admin/models/tiny/shadow", {"version": False}),
        ("POST", "/v1/admin/models/tiny/rollback", {"version": "1"}),
        ("POST", "/v1/admin/models/scan", {"model": "tiny"}),
        ("PATCH", "/v1/events/x", {"review": True}),
        ("PATCH", "/v1/events/x", {"review": "confirmed", "note": 1}),
        ("PATCH", "/v1/events/x", {"reveiw": "confirmed"}),
        ("POST", "/v1/session", {"key": 1}),
        ("POST", "/v1/session", {"key": "x", "remember": True}),
        ("POST", "/v1/session", ["x"]),
        ("POST", "/v2/repository/index", {"ready": "true"}),
        ("POST", "/v2/repository/index", {"ready": 1}),
        ("POST", "/v2/repository/index", {"raedy": True}),
    ],
)
def test_bodies_are_taken_as_they_are(
    api: FastAPI, monkeypatch: pytest.MonkeyPatch, method: str, path: str, body: object
) -> None:
    monkeypatch.setattr("gateway.http.routes.admin._rollout", lambda _request: pytest.fail("it was taken"))
    monkeypatch.setattr("gateway.http.routes.events._store", lambda _request: pytest.fail("it was taken"))
    assert len(refused(call(api, method, path, json=body))) < 300


def test_keys_are_named_with_the_nearest(api: FastAPI) -> None:
    for method, path, body, said in (
        ("POST", "/v1/admin/models/tiny/load", {"verison": "1"}, "unknown key 'verison'; did you mean 'version'?"),
        ("PATCH", "/v1/events/x", {"reveiw": "confirmed"}, "unknown key 'reveiw'; did you mean 'review'?"),
        ("POST", "/v1/session", {"keys": "x"}, "unknown key 'keys'; did you mean 'key'?"),
    ):
        assert said in refused(call(api, method, path, json=body))


def test_a_body_that_says_nothing_is_none(api: FastAPI) -> None:
    for content in (b"", b"{}", b" {}\n"):
        assert call(api, "POST", "/v1/admin/models/scan", content=content).json()["code"] == "not_ready"
    for content in (b"", b'{"ready": true}', b"{}"):
        index = call(api, "POST", "/v2/repository/index", content=content)
        assert [entry["name"] for entry in index.json()] == ["tiny"]


def test_who_may_not_use_a_route_learns_that_first(api: FastAPI, monkeypatch: pytest.MonkeyPatch) -> None:
    from gateway.access.auth import Caller

    client = Caller(key_id="c", role="client", disclosure="full")
    monkeypatch.setattr(api.state.auth, "admit", lambda _scope: client)
    response = call(api, "POST", "/v1/admin/models/tiny/rollback?zzz=1", json={"version": "1"})
    refused(response, 403, "forbidden")


def test_inflating_takes_a_place_as_decoding_does(api: FastAPI, monkeypatch: pytest.MonkeyPatch) -> None:
    from gateway.errors import Overloaded

    dispatcher = api.state.dispatcher

    async def full(_job: object) -> None:
        raise Overloaded("full")

    monkeypatch.setattr(dispatcher, "parse", full)
    coded = call(api, "POST", "/v1/predict", content=gzip.compress(CLEAN), headers={"Content-Encoding": "gzip"})
    refused(coded, 503, "overloaded")
    assert call(api, "POST", "/v1/predict", content=CLEAN).status_code == 200
