"""Access over a real server of two workers: one limit, one session, one state folder; and no open container."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest
from typer.testing import CliRunner

from gateway.cli.main import app
from gateway.process.serving import SERVICE, server_environment
from gateway.settings import Settings
from tests.gateway.server import ROOT, Server, start, stop, wait_until_ready
from tests.gateway.tiny import clean_image, encode, write_bundle

CLEAN = encode(clean_image())
RATE, BURST = 2.0, 30


@pytest.fixture(scope="module")
def keys_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("keys") / "keys.json"


def create(file: Path, name: str, *options: str) -> dict[str, str]:
    result = CliRunner().invoke(app, ["keys", "create", "--id", name, "--file", str(file), *options])
    return {"Authorization": f"Bearer {result.stdout.strip()}"}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, keys_file: Path) -> Iterator[Server]:
    models = tmp_path_factory.mktemp("served")
    write_bundle(models / "tiny")
    create(keys_file, "admin", "--role", "admin")
    create(keys_file, "limited", "--rate", str(RATE), "--burst", str(BURST))
    running = start(models, tmp_path_factory.mktemp("server"), workers=2, keys_file=keys_file)
    try:
        wait_until_ready(running)
        yield running
    finally:
        stop(running)
    assert "Traceback" not in running.log.read_text()


def state_folder(server: Server) -> Path:
    workers = psutil.Process(server.process.pid).children(recursive=True)
    (folder,) = {worker.environ().get("PALISADE_STATE_DIR", "") for worker in workers} - {""}
    return Path(folder)


def test_two_workers_grant_one_limit_together(server: Server, keys_file: Path) -> None:
    rate = 0.1  # so slow that a loaded machine cannot earn back what it spends
    limited = create(keys_file, "burst", "--rate", str(rate), "--burst", str(BURST))
    time.sleep(1.1)  # both workers read the keys again within a second
    begin = time.monotonic()
    # A connection each, so that both workers take part.
    statuses = [httpx.get(server.url + "/v1/models", headers=limited).status_code for _ in range(120)]
    elapsed = time.monotonic() - begin
    assert set(statuses) == {200, 429}
    assert BURST <= statuses.count(200) <= BURST + rate * elapsed + 1
    assert statuses[:BURST] == [200] * BURST


def test_a_session_of_one_worker_holds_in_the_other(server: Server, keys_file: Path) -> None:
    key = create(keys_file, "console", "--role", "reviewer")["Authorization"].removeprefix("Bearer ")
    time.sleep(1.1)
    with httpx.Client(base_url=server.url) as browser:
        info = browser.post("/v1/session", json={"key": key}).json()
        jar = dict(browser.cookies)
    cookie = {"Cookie": "; ".join(f"{name}={value}" for name, value in jar.items())}
    answers = [httpx.get(server.url + "/v1/session", headers=cookie) for _ in range(20)]
    assert [answer.json() for answer in answers] == [info] * 20
    out = httpx.delete(server.url + "/v1/session", headers=cookie | {"X-CSRF-Token": info["csrf"]})
    assert out.status_code == 204
    assert {httpx.get(server.url + "/v1/session", headers=cookie).status_code for _ in range(20)} == {401}


def test_strangers_reach_probes_and_little_else(server: Server) -> None:
    for path in ("/livez", "/readyz", "/", "/metrics"):
        assert httpx.get(server.url + path).status_code == 200, path
    refused = server.post(content=bytes(9_000_000))
    assert refused.status_code == 401
    assert refused.headers["content-type"] == "application/problem+json"
    log = server.log.read_text()
    assert "pal_" not in log


def test_the_state_folder_goes_with_the_server(tmp_path: Path, server: Server) -> None:
    write_bundle(tmp_path / "models" / "tiny")
    running = start(tmp_path / "models", tmp_path)
    try:
        wait_until_ready(running)
        folder = state_folder(running)
        assert folder != state_folder(server)
        assert (folder / "state.db").exists()
    finally:
        stop(running)
    assert not folder.exists()


@pytest.mark.parametrize(
    ("variables", "options"),
    [({"PALISADE_HOST": "0.0.0.0"}, []), ({}, ["--host", "0.0.0.0"]), ({"BENTOML_HOST": "::"}, [])],  # noqa: S104
    ids=["as in a container", "bentoml --host", "BENTOML_HOST"],
)
def test_bentoml_refuses_to_serve_everybody(tmp_path: Path, variables: dict[str, str], options: list[str]) -> None:
    environment = {**server_environment(Settings(models=[tmp_path])), "BENTOML_HOME": str(tmp_path), **variables}
    del environment["PALISADE_CHECKED"]
    command = [sys.executable, "-m", "bentoml", "serve", SERVICE, "--port", "1", *options]
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, check=False, timeout=60)
    assert result.returncode != 0
    assert b"without API keys would be open to everybody" in result.stderr
    assert b"PALISADE_ALLOW_UNAUTHENTICATED=true" in result.stderr
    assert b"Traceback" not in result.stderr


def test_palisade_serve_refuses_too(bundle_folder: Path) -> None:
    result = CliRunner().invoke(app, ["serve", "--models", str(bundle_folder), "--host", "0.0.0.0"])  # noqa: S104
    assert result.exit_code == 2
    assert "without API keys" in result.output.replace("\n", " ")
