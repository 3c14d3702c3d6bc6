"""Two real workers: a switch of versions under load, a worker that is killed, and an end that answers first."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterator

import httpx
import pytest
from typer.testing import CliRunner

from gateway.cli.main import app
from tests.gateway.server import Server, served
from tests.gateway.tiny import CLASSES, clean_image, encode, write_bundle

CLEAN = encode(clean_image())
NEW_CLASSES = ["rouge", "vert", "bleu"]
CLIENTS = 8
READY = ("/readyz", "/v2/health/ready")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    models = tmp_path_factory.mktemp("versions")
    write_bundle(models / "tiny" / "1.0.0")
    write_bundle(models / "tiny" / "2.0.0", version="2.0.0", classes=NEW_CLASSES, gain=30.0)
    with served(models, tmp_path_factory.mktemp("server"), workers=2) as running:
        yield running


def state(server: Server) -> dict[str, object]:
    return httpx.get(server.url + "/v1/admin/models", timeout=20).json()  # type: ignore[no-any-return]


def pids(server: Server) -> set[int]:
    return {worker["pid"] for worker in state(server)["workers"]}  # type: ignore[attr-defined]


def admin(server: Server, *arguments: str) -> str:
    result = CliRunner().invoke(app, ["models", *arguments, "--url", server.url])
    assert result.exit_code == 0, result.output
    return result.output


def test_ready_means_that_every_worker_is(server: Server) -> None:
    assert len(pids(server)) == 2
    assert server.metrics()["palisade_ready"] == 2


def test_a_switch_under_load_fails_nothing_and_mixes_nothing(server: Server) -> None:
    probability = {}
    for version in ("1.0.0", "2.0.0"):
        admin(server, "activate", "tiny", version)
        probability[version] = server.post(content=CLEAN).json()["prediction"]["probability"]
    assert probability["1.0.0"] != pytest.approx(probability["2.0.0"], abs=0.01)
    answers: Counter[tuple[int, str | None, str, float]] = Counter()
    over = asyncio.Event()

    async def ask() -> None:
        async with httpx.AsyncClient(base_url=server.url, timeout=20) as client:
            while not over.is_set():
                answer = await client.post("/v1/predict", content=CLEAN)
                body = answer.json()
                found = body.get("prediction", {"label": "", "probability": 0.0})
                key = (body.get("model") or {}).get("version"), found["label"], found["probability"]
                answers[answer.status_code, *key] += 1

    async def switch() -> None:
        async with httpx.AsyncClient(base_url=server.url, timeout=60) as client:
            for version in ("1.0.0", "2.0.0", "1.0.0", "2.0.0"):
                path = "/v1/admin/models/tiny/activate?wait=20"
                answer = await client.post(path, json={"version": version})
                assert answer.json()["converged"] is True
        over.set()

    async def both() -> None:
        await asyncio.gather(switch(), *(ask() for _ in range(CLIENTS)))

    asyncio.run(both())
    assert set(answers) == {
        (200, "1.0.0", CLASSES[0], probability["1.0.0"]),
        (200, "2.0.0", NEW_CLASSES[0], probability["2.0.0"]),
    }
    metrics = server.metrics()
    info = {
        version: metrics[f'palisade_model_info{{model="tiny",precision="fp32",provider="cpu",version="{version}"}}']
        for version in probability
    }
    assert info == {"1.0.0": 0.0, "2.0.0": 1.0}


def test_shadow_mode_over_http(server: Server) -> None:
    admin(server, "shadow", "tiny", "1.0.0")
    series = 'palisade_shadow_total{agreement="label_differs",model="tiny",version="1.0.0"}'
    before = server.metrics().get(series, 0.0)
    assert {server.post(content=CLEAN).json()["prediction"]["label"] for _ in range(5)} == {NEW_CLASSES[0]}
    deadline = time.monotonic() + 10
    while server.metrics().get(series, 0.0) < before + 1:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert "shadow" in admin(server, "list")
    assert "all run this state" in admin(server, "shadow", "tiny", "--off")


def test_a_refused_change_is_one_line(server: Server) -> None:
    result = CliRunner().invoke(app, ["models", "activate", "tiny", "9.0.0", "--url", server.url])
    assert result.exit_code == 2
    assert "'9.0.0' is not on disk (has 2.0.0, 1.0.0) (404 unknown_version)" in result.output.replace("\n", "")


@pytest.mark.parametrize("which", [min, max])
def test_a_killed_worker_is_replaced_while_the_other_serves(server: Server, which: Callable[[set[int]], int]) -> None:
    before = pids(server)
    killed = which(before)
    os.kill(killed, signal.SIGKILL)
    deadline = time.monotonic() + 30
    while pids(server) - before == set() or not state(server)["converged"]:
        assert server.post(content=CLEAN).status_code == 200
        assert {path: httpx.get(server.url + path, timeout=20).status_code for path in READY} == dict.fromkeys(
            READY, 200
        )
        assert time.monotonic() < deadline, server.log.read_text()
        time.sleep(0.05)
    assert before - {killed} <= pids(server)
    assert server.metrics()["palisade_ready"] == 2


def test_the_end_answers_what_is_in_flight_and_nothing_new(server: Server) -> None:
    head = f"POST /v1/predict HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {len(CLEAN)}\r\n\r\n".encode()
    open_ = [socket.create_connection(("127.0.0.1", server.port), timeout=20) for _ in range(6)]
    for connection in open_:
        connection.sendall(head + CLEAN[:20])
    time.sleep(0.5)
    server.process.send_signal(signal.SIGTERM)
    deadline = time.monotonic() + 10
    while True:
        try:
            socket.create_connection(("127.0.0.1", server.port), timeout=5).close()
        except ConnectionRefusedError:
            break
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert server.process.poll() is None
    for connection in open_:
        connection.sendall(CLEAN[20:])
        answer = b"".join(iter(lambda connection=connection: connection.recv(65_536), b""))
        assert answer.startswith(b"HTTP/1.1 200"), answer[:200]
        assert NEW_CLASSES[0].encode() in answer
    assert server.process.wait(20) == 0
