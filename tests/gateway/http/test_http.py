"""End to end: a real `bentoml serve` process, real connections, and everything bad that a client may send."""

from __future__ import annotations

import asyncio
import io
import os
import socket
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from PIL import Image

from gateway.process.serving import server_command, server_environment
from gateway.settings import Settings
from tests.gateway.core.test_decode import png_bomb
from tests.gateway.server import ROOT, Server, start, stop, wait_until_ready
from tests.gateway.tiny import clean_image, encode, patched_image, write_bundle

CLEAN, PATCHED = encode(clean_image()), encode(patched_image())


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    models = tmp_path_factory.mktemp("served")
    write_bundle(models / "tiny")
    (models / "broken").mkdir()
    (models / "broken" / "manifest.json").write_text("{}")
    running = start(models, tmp_path_factory.mktemp("server"), body_timeout=1.5)
    try:
        wait_until_ready(running)
        yield running
        assert httpx.get(running.url + "/livez").status_code == 200
        log = running.log.read_text()
        for sign in ("Traceback", "Exception", "ASGI application", "[CRITICAL]"):
            assert sign not in log, log
        # The one error is the broken bundle, which is named.
        errors = [line for line in log.splitlines() if "[ERROR]" in line]
        assert len(errors) == 1
        assert "broken/manifest.json" in errors[0]
    finally:
        stop(running)


def test_the_issues_two_ways_to_send_an_image(server: Server) -> None:
    raw = server.post("/v1/predict?explain=all", content=PATCHED, headers={"Content-Type": "image/png"})
    assert raw.status_code == 200
    body = raw.json()
    assert {"prediction", "verdict", "neutralization", "explanation", "timing_ms"} <= set(body)
    assert (body["prediction"]["label"], body["verdict"]["flagged"]) == ("red", True)
    form = server.post("/v1/predict", files={"image": ("x.png", PATCHED, "image/png")}).json()
    assert form["prediction"] == body["prediction"]
    picture = server.post("/v1/explain", content=PATCHED, headers={"Accept": "image/png"})
    assert picture.headers["content-type"] == "image/png"
    assert Image.open(io.BytesIO(picture.content)).width > 1000


def test_probes_index_and_models(server: Server) -> None:
    for path in ("/livez", "/readyz", "/", "/v1/models", "/v1/models/tiny", "/openapi.json", "/metrics"):
        assert httpx.get(server.url + path).status_code == 200, path


JPEG_BOMB = encode(clean_image(), "JPEG").replace(b"\x00\x10\x00\x10\x03", b"\x1f\x40\x18\x6a\x03")  # 6250 x 8000


@pytest.mark.parametrize(
    ("name", "path", "data", "status", "code"),
    [
        ("empty body", "/v1/predict", b"", 400, "empty_body"),
        ("garbage", "/v1/predict", bytes(range(256)) * 8, 415, "unsupported_media_type"),
        ("garbage that starts like a PNG", "/v1/predict", CLEAN[:8] + os.urandom(500), 422, "undecodable_image"),
        ("truncated PNG", "/v1/predict", CLEAN[:-30], 422, "undecodable_image"),
        ("text", "/v1/predict", b"just some text\n" * 20, 415, "unsupported_media_type"),
        ("50 megapixels", "/v1/predict", png_bomb(10_000, 5_000), 413, "image_too_large"),
        ("50 megapixels, JPEG", "/v1/predict", JPEG_BOMB, 413, "image_too_large"),
        ("unknown model", "/v1/predict?model=nope", CLEAN, 404, "unknown_model"),
        ("refused bundle", "/v1/predict?model=broken", CLEAN, 404, "unknown_model"),
        ("negative top_k", "/v1/predict?top_k=-1", CLEAN, 422, "bad_parameter"),
        ("huge top_k", f"/v1/predict?top_k={'9' * 400}", CLEAN, 422, "bad_parameter"),
        ("odd explain", "/v1/predict?explain=%00%ff", CLEAN, 422, "bad_parameter"),
        ("unknown route", "/v1/%0a%0aforged%20line", CLEAN, 404, "not_found"),
        ("unknown route", "/schema", CLEAN, 404, "not_found"),
    ],
    ids=lambda value: value if isinstance(value, str) and value.isprintable() else "",
)
def test_bad_input(server: Server, name: str, path: str, data: bytes, status: int, code: str) -> None:
    response = server.post(path, content=data, headers={"Content-Type": "image/png"})
    assert response.headers["content-type"] == "application/problem+json", name
    assert (response.status_code, response.json()["code"]) == (status, code)
    assert response.headers["x-request-id"]
    assert server.post(content=CLEAN).status_code == 200


@pytest.mark.parametrize("chunked", [False, True])
def test_100_megabytes_are_refused_and_never_held(server: Server, chunked: bool) -> None:
    before = server.peak_bytes()
    piece = bytes(1_000_000)
    headers = {"Content-Type": "image/png"} | ({} if chunked else {"Content-Length": "100000000"})
    response = server.post(content=(piece for _ in range(100)), headers=headers)
    assert (response.status_code, response.json()["code"]) == (413, "image_too_large")
    # 10 MB alone; up to 41 MB were seen where other tests held both cores and copies waited to be freed.
    assert server.peak_bytes() - before < 60_000_000


def test_curl_sees_the_413(server: Server, tmp_path: Path) -> None:
    upload = tmp_path / "big.bin"
    with upload.open("wb") as file:
        file.truncate(100_000_000)
    try:
        for extra in ([], ["-H", "Transfer-Encoding: chunked"], ["-H", "Expect:"]):
            command = ["curl", "-sS", "-X", "POST", "-T", str(upload), *extra, "-H", "Content-Type: image/png"]
            result = subprocess.run(
                [*command, server.url + "/v1/predict"], capture_output=True, check=False, timeout=60
            )
            assert b'"image_too_large"' in result.stdout, (extra, result)
    except FileNotFoundError:
        pytest.skip("curl is not installed")


def test_slow_and_broken_off_uploads(server: Server) -> None:
    head = b"POST /v1/predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/png\r\nContent-Length: 1000\r\n\r\n"
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as slow:
        slow.sendall(head + CLEAN[:20])
        answer = b"".join(iter(lambda: slow.recv(65_536), b""))
        assert b"408" in answer.split(b"\r\n")[0]
        assert b"request_timeout" in answer
    for _ in range(5):
        with socket.create_connection(("127.0.0.1", server.port), timeout=20) as broken:
            broken.sendall(head + CLEAN[:20])
    assert server.post(content=CLEAN).status_code == 200


def test_form_fields_are_never_fetched(server: Server) -> None:
    for url in ("http://127.0.0.1:1/x.png", "file:///etc/passwd", "data:image/png;base64,AAAA"):
        response = server.post(data={"image": url}, files={"other": ("a", b"b")})
        assert response.json()["code"] == "bad_parameter"
    long_text = server.post(files={"image": (None, "x" * 2_000_000)})
    assert long_text.json()["code"] == "bad_parameter"


def test_metrics_count_what_was_sent(server: Server) -> None:
    before = server.metrics()
    for _ in range(3):
        server.post(content=CLEAN)
    server.post(content=PATCHED)
    server.post(content=b"text")
    after = server.metrics()

    def grown(series: str) -> float:
        return after[series] - before.get(series, 0.0)

    assert grown('palisade_requests_total{model="tiny",outcome="ok"}') == 3
    assert grown('palisade_requests_total{model="tiny",outcome="flagged"}') == 1
    assert grown('palisade_requests_total{model="tiny",outcome="rejected"}') == 1
    assert grown('palisade_predictions_total{label="red",model="tiny"}') == 4
    assert grown('palisade_neutralized_total{changed="true",model="tiny"}') == 1
    assert grown('palisade_p_value_count{model="tiny"}') == 4
    assert grown('palisade_rejected_total{code="unsupported_media_type"}') == 1
    assert after['palisade_model_info{model="tiny",precision="fp32",provider="cpu",version="1.0.0"}'] == 1


def test_a_scanner_cannot_create_series(server: Server) -> None:
    before = set(server.metrics())
    for i in range(30):
        httpx.get(f"{server.url}/scan/{i}")
        server.post(f"/v1/predict?model=m{i}", content=CLEAN)
    new = {series for series in set(server.metrics()) - before if "scan" in series or "m29" in series}
    assert not new
    assert len(set(server.metrics()) - before) <= 4


def test_many_at_once(server: Server) -> None:
    images = [CLEAN, PATCHED, b"text", CLEAN[:-30]] * 12
    with ThreadPoolExecutor(16) as pool:
        codes = list(pool.map(lambda data: server.post(content=data).status_code, images))
    assert codes == [200, 200, 415, 422] * 12


def test_two_workers_share_metrics_and_stop_cleanly(tmp_path: Path) -> None:
    write_bundle(tmp_path / "models" / "tiny")
    (tmp_path / "second").mkdir()
    running = start(tmp_path / "models", tmp_path, workers=2)
    try:
        wait_until_ready(running)

        async def send(n: int) -> list[int]:
            async with httpx.AsyncClient(timeout=30) as client:
                responses = await asyncio.gather(
                    *(client.post(running.url + "/v1/predict", content=CLEAN) for _ in range(n))
                )
            return [response.status_code for response in responses]

        codes = asyncio.run(send(20))
        # A worker that still loads says so.
        assert set(codes) <= {200, 503}
        # Another server in the same BentoML home must not erase the counts of this one.
        second = start(tmp_path / "models", tmp_path / "second", home=tmp_path)
        try:
            wait_until_ready(second)
            assert second.metrics()['palisade_requests_total{model="tiny",outcome="ok"}'] == 0
        finally:
            stop(second)
        counted = running.metrics()['palisade_requests_total{model="tiny",outcome="ok"}']
        assert counted == codes.count(200) > 0
    finally:
        stop(running)
    assert "Traceback" not in running.log.read_text()


def test_nothing_to_serve_ends_the_start(tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    environment = {**server_environment(Settings(models=[tmp_path / "models"])), "BENTOML_HOME": str(tmp_path)}
    del environment["PALISADE_CHECKED"]
    result = subprocess.run(
        server_command(Settings(port=1)), cwd=ROOT, env=environment, capture_output=True, check=False, timeout=60
    )
    assert result.returncode != 0
    assert b"no bundle to serve" in result.stderr
    assert b"Traceback" not in result.stderr
