"""The admin API of models, and `palisade models` in front of it."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from typer.testing import CliRunner

from gateway.access.auth import Caller
from gateway.app import create_api
from gateway.cli.main import app as cli
from gateway.settings import Settings
from gateway.versions.rollout import Rollout
from tests.gateway.tiny import clean_image, encode, write_bundle

ADMIN = "/v1/admin/models"


@pytest.fixture
def models(tmp_path: Path) -> Path:
    for version in ("1.0.0", "2.0.0"):
        write_bundle(tmp_path / "models" / "tiny" / version, version=version)
    return tmp_path / "models"


@pytest.fixture
def api(models: Path) -> FastAPI:
    settings = Settings(models=[models], threads=1, audit=False)
    app = create_api(settings)
    rollout = Rollout(settings, app.state.store)
    rollout.start()
    app.state.rollout, app.state.registry = rollout, rollout.registry
    return app


def call(app: FastAPI, method: str, url: str, **request: Any) -> httpx.Response:
    async def send() -> httpx.Response:
        transport = httpx.ASGITransport(app, client=("127.0.0.1", 1))
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
            return await client.request(method, url, **request)

    return asyncio.run(send())


def post(app: FastAPI, path: str, version: str | None = None) -> httpx.Response:
    return call(app, "POST", f"{ADMIN}/{path}", json=None if version is None else {"version": version})


def test_versions_are_listed_with_what_is_refused(api: FastAPI, models: Path) -> None:
    (write_bundle(models / "tiny" / "3.0.0", version="3.0.0") / "calibration.npz").unlink()
    body = call(api, "GET", ADMIN).json()
    (model,) = body["models"]
    assert [(entry["version"], entry["state"]) for entry in model["versions"]] == [
        ("2.0.0", "active"),
        ("1.0.0", "available"),
    ]
    assert "3.0.0/calibration.npz: listed in the manifest but missing" in body["refused"][0]["reason"]
    assert body["converged"] is True
    assert [worker["ready"] for worker in body["workers"]] == [True]


def test_activate_answer_and_roll_back(api: FastAPI) -> None:
    def served() -> str:
        answer = call(api, "POST", "/v1/predict", content=encode(clean_image()))
        return str(answer.json()["model"]["version"])

    assert served() == "2.0.0"
    body = post(api, "tiny/activate?wait=5", "1.0.0").json()
    assert (body["models"][0]["active"], body["models"][0]["previous"], body["converged"]) == ("1.0.0", "2.0.0", True)
    assert served() == "1.0.0"
    assert post(api, "tiny/rollback").json()["models"][0]["active"] == "2.0.0"
    assert served() == "2.0.0"
    assert post(api, "tiny/shadow", "1.0.0").json()["models"][0]["shadow"] == "1.0.0"
    assert post(api, "tiny/load", "1.0.0").status_code == 200
    ended = call(api, "POST", f"{ADMIN}/tiny/shadow", json={"version": None}).json()["models"][0]
    assert (ended["shadow"], ended["versions"][1]["state"]) == (None, "loaded")
    assert post(api, "tiny/unload", "1.0.0").json()["models"][0]["versions"][1]["state"] == "available"


@pytest.mark.parametrize(
    ("path", "body", "status", "code"),
    [
        ("tiny/activate", {"version": "9.9.9"}, 404, "unknown_version"),
        ("tiny/activate", {"version": "../1.0.0"}, 404, "unknown_version"),
        ("nope/activate", {"version": "1.0.0"}, 404, "unknown_model"),
        ("tiny/activate", {"version": "3.0.0"}, 422, "invalid_bundle"),
        ("tiny/unload", {"version": "2.0.0"}, 409, "conflict"),
        ("tiny/rollback", None, 409, "conflict"),
        ("tiny/shadow", {"version": "2.0.0"}, 409, "conflict"),
        ("tiny/shadow", {}, 422, "bad_parameter"),
        ("tiny/activate", {"version": 1}, 422, "bad_parameter"),
        ("tiny/activate", {"path": "/etc"}, 422, "bad_parameter"),
        ("tiny/activate?wait=inf", {"version": "1.0.0"}, 422, "bad_parameter"),
        ("tiny/activate?wait=nan", {"version": "1.0.0"}, 422, "bad_parameter"),
        ("tiny/dance", {"version": "1.0.0"}, 404, "not_found"),
        ("%2e%2e%2f/load", {"version": "1.0.0"}, 404, None),
    ],
)
def test_refusals(api: FastAPI, models: Path, path: str, body: object, status: int, code: str | None) -> None:
    (write_bundle(models / "tiny" / "3.0.0", version="3.0.0") / "calibration.npz").unlink()
    answer = call(api, "POST", f"{ADMIN}/{path}", json=body)
    assert answer.status_code == status, answer.text
    assert code is None or answer.json()["code"] == code
    assert api.state.registry.get().bundle.version == "2.0.0"


def test_admins_only(api: FastAPI, monkeypatch: pytest.MonkeyPatch) -> None:
    reviewer = Caller(key_id="r", role="reviewer", disclosure="full")
    monkeypatch.setattr(api.state.auth, "admit", lambda _: reviewer)
    for method, path in (("GET", ""), ("POST", "/scan"), ("POST", "/tiny/activate"), ("POST", "/tiny/rollback")):
        assert call(api, method, ADMIN + path, json={"version": "1.0.0"}).json()["code"] == "forbidden"
    assert api.state.registry.get().bundle.version == "2.0.0"


def test_not_before_models_are_loaded(api: FastAPI) -> None:
    api.state.rollout = None
    assert call(api, "GET", ADMIN).json()["code"] == "not_ready"


def test_scan_reads_files_again(api: FastAPI, models: Path) -> None:
    call(api, "GET", ADMIN)
    write_bundle(models / "tiny" / "4.0.0", version="4.0.0")
    versions = call(api, "POST", f"{ADMIN}/scan").json()["models"][0]["versions"]
    assert [entry["version"] for entry in versions] == ["4.0.0", "2.0.0", "1.0.0"]


def test_the_command_says_what_is_wrong() -> None:
    runner = CliRunner()
    for arguments, said in (
        (["list", "--url", "ftp://x"], "expected http://host:port"),
        (["list", "--url", "http://127.0.0.1:1"], "does not answer"),
        (["shadow", "tiny"], "a version, or --off"),
    ):
        result = runner.invoke(cli, ["models", *arguments])
        assert result.exit_code == 2, result.output
        assert said in result.output.replace("\n", "")
        assert "Traceback" not in result.output
