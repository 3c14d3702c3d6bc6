"""Who gets in, and as whom: keys, strangers, sessions, limits; all before a body is read."""

from __future__ import annotations

import asyncio
import logging
import math
import re
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import APIRouter, Depends, FastAPI, Request
from typer.testing import CliRunner

from gateway.access import keys
from gateway.access.auth import Auth, Caller, check_access, is_loopback
from gateway.access.keys import Role
from gateway.access.limits import charge_images
from gateway.app import create_api
from gateway.cli.keys import app as keys_app
from gateway.core.pipeline import Pipeline
from gateway.errors import ConfigError
from gateway.http.authentication import require
from gateway.settings import Settings
from gateway.versions.registry import Registry
from tests.gateway.tiny import clean_image, encode, patched_image

EVERYWHERE = "0.0.0.0"  # noqa: S104
CLEAN, PATCHED = encode(clean_image()), encode(patched_image())
router = APIRouter(prefix="/test")


@router.get("/{role}")
async def guarded(role: Role, request: Request) -> str:
    caller = await require(role)(request)
    return f"{caller.key_id} {caller.role} {caller.disclosure}"


@router.post("/change")
async def change(caller: Caller = Depends(require("reviewer"))) -> str:
    return str(caller.key_id)


@router.put("/batch/{images}")
async def batch(images: int, request: Request) -> int:
    charge_images(request, images)
    return images


class Gateway:
    """An application with keys of each role, and a client of it."""

    def __init__(self, folder: Path, *, registry: Registry | None = None, **settings: Any) -> None:
        file = folder / "keys.json"
        self.keys = {role: self.create(file, role, "--role", role) for role in ("client", "reviewer", "admin")}
        self.file = file
        self.app = self.serve(keys_file=file, **settings)
        self.app.state.registry = registry

    @staticmethod
    def create(file: Path, name: str, *options: str) -> str:
        return CliRunner().invoke(keys_app, ["create", "--id", name, "--file", str(file), *options]).stdout.strip()

    @staticmethod
    def serve(**settings: Any) -> FastAPI:
        return with_test_routes(create_api(Settings(**settings)))

    def call(self, method: str, url: str, key: str | None = None, **request: Any) -> httpx.Response:
        headers = {**request.pop("headers", {})}
        if key is not None:
            headers["Authorization"] = f"Bearer {self.keys.get(key, key)}"
        return call(self.app, method, url, headers=headers, **request)


def with_test_routes(app: FastAPI) -> FastAPI:
    catch_all = app.router.routes.pop()
    app.include_router(router)
    app.router.routes.append(catch_all)
    return app


def call(
    app: FastAPI, method: str, url: str, *, client: str = "127.0.0.1", host: str = "localhost", **request: Any
) -> httpx.Response:
    async def send() -> httpx.Response:
        transport = httpx.ASGITransport(app, client=(client, 1))
        async with httpx.AsyncClient(transport=transport, base_url=f"http://{host}") as http:
            return await http.request(method, url, **request)

    return asyncio.run(send())


def code(response: httpx.Response) -> tuple[int, str]:
    assert response.headers["content-type"] == "application/problem+json"
    return response.status_code, response.json()["code"]


@pytest.fixture
def gateway(tmp_path: Path) -> Gateway:
    return Gateway(tmp_path)


def test_roles(gateway: Gateway) -> None:
    for key, allowed in {"client": 1, "reviewer": 2, "admin": 3}.items():
        answers = [gateway.call("GET", f"/test/{role}", key) for role in ("client", "reviewer", "admin")]
        assert [answer.status_code for answer in answers] == [200] * allowed + [403] * (3 - allowed)
        assert answers[0].json() == f"{key} {key} {'verdict' if key == 'client' else 'full'}"
    assert code(gateway.call("GET", "/test/admin", "reviewer")) == (403, "forbidden")


@pytest.mark.parametrize(
    "authorization",
    [None, "", "Bearer", "Bearer x", "Basic cGFsOnBhbA==", "bearer pal_é", f"Bearer pal_{'a' * 43}", "Bearer " * 999],
)
def test_strangers_get_401_whatever_they_ask(gateway: Gateway, authorization: str | None) -> None:
    headers = {} if authorization is None else {"Authorization": authorization.encode()}
    for method, path in (("GET", "/v1/models"), ("POST", "/v1/predict"), ("GET", "/nothing"), ("GET", "/openapi.json")):
        response = gateway.call(method, path, headers=headers)
        assert code(response) == (401, "unauthorized")
        assert response.headers["www-authenticate"].startswith("Bearer")


def test_probes_page_and_metrics_are_open(gateway: Gateway) -> None:
    for path in ("/", "/metrics"):
        assert gateway.call("GET", path).status_code == 200
    # BentoML answers these itself; for the application they do not exist, which a stranger may know.
    for path in ("/livez", "/readyz", "/healthz"):
        assert code(gateway.call("GET", path)) == (404, "not_found")


def test_metrics_ask_for_their_token(tmp_path: Path) -> None:
    gateway = Gateway(tmp_path, metrics_token="scrape-me")  # noqa: S106
    assert code(gateway.call("GET", "/metrics")) == (401, "unauthorized")
    assert code(gateway.call("GET", "/metrics", "client")) == (403, "forbidden")
    assert gateway.call("GET", "/metrics", "scrape-me").status_code == 200
    assert gateway.call("GET", "/metrics", "admin").status_code == 200
    assert code(gateway.call("GET", "/v1/models", "scrape-me")) == (401, "unauthorized")


def test_the_document_tells_how_to_authenticate(gateway: Gateway) -> None:
    document = gateway.call("GET", "/openapi.json", "client").json()
    assert set(document["components"]["securitySchemes"]) == {"key", "session"}
    assert {"key": []} in document["security"]
    answers = document["paths"]["/v1/predict"]["post"]["responses"]["200"]["content"]["application/json"]["schema"]
    assert [option["$ref"].rpartition("/")[2] for option in answers["anyOf"]] == [
        "PredictResponse",
        "VerdictResponse",
        "LabelResponse",
    ]


def test_nothing_of_a_strangers_body_is_read(gateway: Gateway) -> None:
    async def body() -> AsyncIterator[dict[str, Any]]:
        reads.append(1)
        yield {"type": "http.request", "body": bytes(1000), "more_body": False}

    async def talk() -> None:
        source = body()
        scope = {
            "type": "http",
            "method": "POST",
            "path": "/v1/predict",
            "query_string": b"",
            "client": ("127.0.0.1", 1),
            "headers": [(b"content-length", b"1000")],
        }

        async def send(message: dict[str, Any]) -> None:
            if message["type"] == "http.response.start":
                status.append((message["status"], len(reads)))

        await gateway.app(scope, lambda: anext(source), send)  # type: ignore[arg-type]

    reads: list[int] = []
    status: list[tuple[int, int]] = []
    asyncio.run(talk())
    assert status == [(401, 0)]


def test_revoked_keys_end(gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keys, "RELOAD_SECONDS", 0.0)
    assert gateway.call("GET", "/test/client", "client").status_code == 200
    CliRunner().invoke(keys_app, ["revoke", "client", "--file", str(gateway.file)])
    assert code(gateway.call("GET", "/test/client", "client")) == (401, "unauthorized")


def test_without_keys_this_machine_is_admin() -> None:
    app = Gateway.serve()
    assert call(app, "GET", "/test/admin").json() == "None admin full"
    assert call(app, "GET", "/test/admin", client="::1", host="[::1]:3000").status_code == 200
    assert call(app, "POST", "/test/change", headers={"Origin": "http://localhost"}).status_code == 200
    assert call(app, "GET", "/v1/session").json()["role"] == "admin"


@pytest.mark.parametrize(
    "request_",
    [
        {"client": "192.0.2.1"},
        {"host": "rebound.example"},
        {"headers": {"X-Forwarded-For": "127.0.0.1"}},
        {"headers": {"Origin": "https://page.example"}},
        {"headers": {"Origin": "null"}},
        {"headers": {"Origin": "http://localhost:8080"}},
    ],
    ids=["address", "rebound name", "proxy", "another page", "sandboxed page", "another port"],
)
def test_without_keys_strangers_are_clients_at_most(request_: dict[str, Any]) -> None:
    assert code(call(Gateway.serve(), "POST", "/test/change", **request_)) == (401, "unauthorized")
    asked = Gateway.serve(allow_unauthenticated=True, disclosure="label")
    assert call(asked, "GET", "/test/client", **request_).json() == "None client label"
    assert code(call(asked, "POST", "/test/change", **request_)) == (403, "forbidden")


def test_bound_to_more_than_loopback_nobody_is_admin_without_a_key() -> None:
    # A container's port forwarder makes strangers come from loopback.
    app = Gateway.serve(host=EVERYWHERE, allow_unauthenticated=True)
    assert call(app, "GET", "/test/client").json() == "None client verdict"


def test_the_server_refuses_to_start_open(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for host in (EVERYWHERE, "::", "192.0.2.1", "gateway.example"):
        with pytest.raises(ConfigError, match=r"without API keys.*PALISADE_KEYS_FILE.*PALISADE_ALLOW_UNAUTH"):
            check_access(Settings(host=host))
    for host in ("127.0.0.1", "localhost", "::1", "127.9.9.9"):
        assert is_loopback(host)
        check_access(Settings(host=host))
    assert not caplog.records
    check_access(Settings(host=EVERYWHERE, allow_unauthenticated=True))
    assert "strangers are answered" in caplog.text
    with pytest.raises(ConfigError, match="No such file"):
        check_access(Settings(host=EVERYWHERE, keys_file=tmp_path / "keys.json"))
    Gateway.create(tmp_path / "keys.json", "one")
    check_access(Settings(host=EVERYWHERE, keys_file=tmp_path / "keys.json"))


def test_limits_hold_by_key(tmp_path: Path) -> None:
    gateway = Gateway(tmp_path, rate=0.5, burst=2)
    own = gateway.create(gateway.file, "own", "--rate", "0.1", "--burst", "1")
    free = gateway.create(gateway.file, "free", "--rate", "0")
    gateway.app = gateway.serve(keys_file=gateway.file, rate=0.5, burst=2)
    statuses = [gateway.call("GET", "/test/client", "client").status_code for _ in range(3)]
    assert statuses == [200, 200, 429]
    refused = gateway.call("POST", "/v1/predict", "client")
    assert code(refused) == (429, "rate_limited")
    assert 1 <= int(refused.headers["retry-after"]) <= 2
    assert [gateway.call("GET", "/test/client", own).status_code for _ in range(2)] == [200, 429]
    for key in (free, "reviewer", "admin"):
        assert [gateway.call("GET", "/test/client", key).status_code for _ in range(5)] == [200] * 5
    assert gateway.call("GET", "/metrics").status_code == 200


def test_batches_cost_their_images(tmp_path: Path) -> None:
    gateway = Gateway(tmp_path, rate=0.01, burst=10)
    assert gateway.call("PUT", "/test/batch/8", "client").status_code == 200
    assert code(gateway.call("PUT", "/test/batch/3", "client")) == (429, "rate_limited")
    assert gateway.call("PUT", "/test/batch/1", "client").status_code == 200


def test_an_infinite_rate_is_no_limit(tmp_path: Path) -> None:
    """`palisade keys create --rate inf`, or PALISADE_RATE=inf: of a bucket without end nothing can be counted."""
    gateway = Gateway(tmp_path, rate=math.inf)
    assert [gateway.call("GET", "/test/client", "client").status_code for _ in range(3)] == [200] * 3


def test_strangers_are_limited_by_address() -> None:
    app = Gateway.serve(host=EVERYWHERE, allow_unauthenticated=True, rate=0.1, burst=1)
    for client, status in (("192.0.2.1", 200), ("192.0.2.1", 429), ("192.0.2.2", 200)):
        assert call(app, "GET", "/test/client", client=client).status_code == status
    for client, status in (("2001:db8::1", 200), ("2001:db8::2", 429), ("2001:db8:0:1::1", 200)):
        assert call(app, "GET", "/test/client", client=client).status_code == status


def test_what_a_caller_sees(tmp_path: Path, pipeline: Pipeline) -> None:
    gateway = Gateway(tmp_path, registry=Registry([pipeline]), label_quantum=0.02)
    gateway.keys["label"] = gateway.create(gateway.file, "label", "--disclosure", "label")
    gateway.app = gateway.serve(keys_file=gateway.file, label_quantum=0.02)
    gateway.app.state.registry = Registry([pipeline])
    bodies = {
        key: gateway.call("POST", "/v1/predict?explain=none", key, content=PATCHED).json()
        for key in ("reviewer", "client", "label")
    }
    full, verdict, label = bodies["reviewer"], bodies["client"], bodies["label"]
    common = {"id", "model", "prediction", "top", "verdict", "neutralization", "explanation", "certificate"}
    assert set(full) == common | {"timing_ms", "pool"}
    assert set(verdict) == common | {"pooled"}
    assert verdict["prediction"] == full["prediction"]
    assert set(verdict["verdict"]) == {"flagged", "level", "p_value", "action", "kind"}
    assert set(verdict["neutralization"]) == {"applied", "served", "changed"}
    assert set(label) == {"id", "model", "prediction"}
    assert (label["model"], set(label["prediction"])) == ({"name": "tiny"}, {"label", "index"})
    begin = time.perf_counter()
    gateway.call("POST", "/v1/predict", "label", content=CLEAN)
    assert time.perf_counter() - begin >= 0.02
    explained = gateway.call("POST", "/v1/predict?explain=all", "client", content=PATCHED).json()["explanation"]
    assert explained["saliency"]
    assert explained["companion"] is None
    for path in ("/v1/predict?explain=saliency", "/v1/explain"):
        assert code(gateway.call("POST", path, "label", content=PATCHED)) == (403, "forbidden")
    picture = {"Accept": "image/png"}
    assert code(gateway.call("POST", "/v1/explain", "client", content=CLEAN, headers=picture)) == (403, "forbidden")
    assert gateway.call("POST", "/v1/explain", "reviewer", content=CLEAN, headers=picture).status_code == 200
    (summary,) = gateway.call("GET", "/v1/models", "label").json()["models"]
    assert set(summary) == {"name", "default", "description", "classes"}
    assert set(gateway.call("GET", "/v1/models/tiny", "label").json()) == set(summary)


def log_in(gateway: Gateway, key: str = "reviewer", **request: Any) -> httpx.Response:
    return gateway.call("POST", "/v1/session", json={"key": gateway.keys.get(key, key)}, **request)


def cookies(response: httpx.Response) -> dict[str, str]:
    found = (re.match(r"([a-z_]+)=([^;]*)", line) for line in response.headers.get_list("set-cookie"))
    return {match[1]: match[2] for match in found if match}


def as_header(jar: dict[str, str]) -> dict[str, str]:
    return {"Cookie": "; ".join(f"{name}={value}" for name, value in jar.items())}


def test_a_session_stands_for_its_key(gateway: Gateway) -> None:
    response = log_in(gateway)
    body, jar = response.json(), cookies(response)
    assert (body["role"], body["disclosure"], body["key_id"]) == ("reviewer", "full", "reviewer")
    session, csrf = response.headers.get_list("set-cookie")
    assert "httponly" in session.lower()
    assert "httponly" not in csrf.lower()
    assert all("samesite=strict" in line.lower() and "secure" not in line.lower() for line in (session, csrf))
    assert jar["palisade_csrf"] == body["csrf"]
    assert gateway.call("GET", "/v1/session", headers=as_header(jar)).json() == body
    assert gateway.call("GET", "/test/reviewer", headers=as_header(jar)).json() == "reviewer reviewer full"
    for token in ({}, {"X-CSRF-Token": ""}, {"X-CSRF-Token": body["csrf"][:-1] + "é"}):
        encoded = {name: value.encode() for name, value in token.items()}
        assert code(gateway.call("POST", "/test/change", headers=as_header(jar) | encoded)) == (403, "forbidden")
    right = as_header(jar) | {"X-CSRF-Token": body["csrf"]}
    assert gateway.call("POST", "/test/change", headers=right).json() == "reviewer"
    other = log_in(gateway)
    assert other.json()["csrf"] != body["csrf"]
    assert gateway.call("DELETE", "/v1/session", headers=right).status_code == 204
    assert code(gateway.call("GET", "/v1/session", headers=as_header(jar))) == (401, "unauthorized")
    assert gateway.call("GET", "/v1/session", headers=as_header(cookies(other))).status_code == 200


def test_cookies_are_secure_over_https(gateway: Gateway) -> None:
    async def send() -> httpx.Response:
        transport = httpx.ASGITransport(gateway.app)
        async with httpx.AsyncClient(transport=transport, base_url="https://localhost") as http:
            return await http.post("/v1/session", json={"key": gateway.keys["admin"]})

    assert all("secure" in line.lower() for line in asyncio.run(send()).headers.get_list("set-cookie"))


def test_workers_share_sessions(tmp_path: Path) -> None:
    gateway = Gateway(tmp_path, state_dir=tmp_path)
    jar = cookies(log_in(gateway))
    other = gateway.serve(keys_file=gateway.file, state_dir=tmp_path)
    assert call(other, "GET", "/v1/session", headers=as_header(jar)).status_code == 200
    token = {"X-CSRF-Token": jar["palisade_csrf"]}
    assert call(other, "DELETE", "/v1/session", headers=as_header(jar) | token).status_code == 204
    assert code(gateway.call("GET", "/v1/session", headers=as_header(jar))) == (401, "unauthorized")


def test_forged_and_outlived_sessions(gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    jar = cookies(log_in(gateway))
    key, expires, nonce, signature = jar["palisade_session"].rsplit(".", 3)
    for forged in (
        f"admin.{expires}.{nonce}.{signature}",
        f"{key}.{int(expires) + 1}.{nonce}.{signature}",
        f"{key}.{expires}.x.{signature}",
        f"{key}.{expires}.{nonce}.",
        f"{key}.{'9' * 400}.{nonce}.{signature}",
        "...",
        "x",
    ):
        headers = as_header({"palisade_session": forged})
        assert code(gateway.call("GET", "/v1/session", headers=headers)) == (401, "unauthorized")
    monkeypatch.setattr("gateway.access.sessions.time.time", lambda: int(expires) + 1.0)
    assert code(gateway.call("GET", "/v1/session", headers=as_header(jar))) == (401, "unauthorized")


def test_a_revoked_key_ends_its_sessions(gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    jar = cookies(log_in(gateway))
    monkeypatch.setattr(keys, "RELOAD_SECONDS", 0.0)
    CliRunner().invoke(keys_app, ["revoke", "reviewer", "--file", str(gateway.file)])
    assert code(gateway.call("GET", "/v1/session", headers=as_header(jar))) == (401, "unauthorized")


def test_what_goes_on_and_on_ends_with_its_key_or_session(gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    auth: Auth = gateway.app.state.auth
    key = auth.key(gateway.keys["reviewer"])
    assert key is not None
    session = auth.sessions.open(key)
    by_key, by_session = auth.caller_of(key), auth.caller_of(key, session)
    assert auth.still(by_key, "reviewer")
    assert auth.still(by_session, "reviewer")
    assert not auth.still(by_key, "admin")
    auth.sessions.end(session)
    assert not auth.still(by_session, "reviewer")
    monkeypatch.setattr(keys, "RELOAD_SECONDS", 0.0)
    CliRunner().invoke(keys_app, ["revoke", "reviewer", "--file", str(gateway.file)])
    assert not auth.still(by_key, "reviewer")
    assert Gateway.serve().state.auth.still(Caller(None, "admin", "full"), "reviewer")


def test_bad_logins(gateway: Gateway) -> None:
    assert code(log_in(gateway, "pal_wrong")) == (401, "unauthorized")
    requests: tuple[dict[str, Any], ...] = (
        {"content": b'{"key": "x"}', "headers": {"Content-Type": "text/plain"}},
        {"content": b'{"key": "x"}'},
        {"json": {"key": 1}},
        {"json": []},
        {"content": b"{", "headers": {"Content-Type": "application/json"}},
        {"json": {"key": "x" * 5000}},
    )
    for request in requests:
        assert code(gateway.call("POST", "/v1/session", **request)) == (422, "bad_parameter")
    for _ in range(30):
        assert log_in(gateway).status_code == 200
    failures = [log_in(gateway, "pal_wrong").status_code for _ in range(12)]
    assert failures == [401] * 9 + [429] * 3
    refused = log_in(gateway)
    assert code(refused) == (429, "rate_limited")
    assert 1 <= int(refused.headers["retry-after"]) <= 10
    assert log_in(gateway, client="192.0.2.1").status_code == 200
    assert code(call(Gateway.serve(), "POST", "/v1/session", json={"key": "x"})) == (401, "unauthorized")


def test_secrets_stay_out_of_the_log(gateway: Gateway, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    jar = cookies(log_in(gateway))
    gateway.call("GET", "/test/client", "admin")
    gateway.call("GET", "/test/client", "pal_wrongkey")
    gateway.call("GET", "/test/client", headers=as_header(jar))
    secrets = [*gateway.keys.values(), "pal_wrongkey", *jar.values()]
    secrets += [entry.sha256 for entry in keys.read_keys(gateway.file)]
    assert caplog.text
    assert not [secret for secret in secrets if secret in caplog.text]
