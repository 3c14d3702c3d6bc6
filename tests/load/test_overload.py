"""Long loads on a real server; `make load` runs them (`-m load`), PALISADE_LOAD_SECONDS each (120)."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from pathlib import Path

import httpx
import psutil
import pytest

from benchmarks.loadgen import Tally, drive, request_bytes
from benchmarks.serving import png_images
from tests.gateway.server import ROOT, Server, start, stop, wait_until_ready

pytestmark = pytest.mark.load
SECONDS = float(os.environ.get("PALISADE_LOAD_SECONDS", "120"))
DEADLINE = 2.0
GROWTH_BYTES = 60_000_000


def serve(folder: Path, **settings: object) -> Server:
    options = {"request_timeout": DEADLINE, "audit": "none", **settings}
    server = start(ROOT / "models" / "gtsrb", folder, **options)
    wait_until_ready(server, 120)
    return server


def load(server: Server, *, clients: int, seconds: float, path: str = "/v1/predict", **options: object) -> Tally:
    requests = [request_bytes(server.url + path, image) for image in png_images()]
    return asyncio.run(drive(server.url, requests, clients=clients, seconds=seconds, **options))  # type: ignore[arg-type]


def workers(server: Server) -> list[psutil.Process]:
    """The processes that serve, by what they hold: the graph makes them the large ones."""
    children = psutil.Process(server.process.pid).children(recursive=True)
    return [child for child in children if "bentoml" in " ".join(child.cmdline()) and "worker" in " ".join(child.cmdline())]


@pytest.mark.parametrize("path", ["/v1/predict", "/v1/predict?explain=all"], ids=["verdict", "all expensive"])
def test_twice_the_capacity(tmp_path: Path, path: str) -> None:
    """Only 200, 429 and 503 with Retry-After; accepted requests keep p99 under the deadline; memory stays flat."""
    server = serve(tmp_path, cascade=True)
    try:
        capacity = load(server, clients=16, seconds=5, path=path)
        # Enough connections that the queue alone would outlast the deadline twice.
        clients = int(2 * capacity.rate() * DEADLINE)
        load(server, clients=clients, seconds=5, path=path)
        before = max(worker.memory_info().rss for worker in workers(server))
        tally = load(server, clients=clients, seconds=SECONDS, path=path)
        after = max(worker.memory_info().rss for worker in workers(server))
    finally:
        stop(server)
    print(  # noqa: T201
        f"\n{path}: capacity {capacity.rate():.0f}/s, offered by {clients} connections for {tally.elapsed:.0f} s: "
        f"{dict(tally.statuses)}, accepted {tally.quantiles_ms()}, memory {(after - before) / 1e6:+.1f} MB"
    )
    assert set(tally.statuses) <= {200, 429, 503}
    assert tally.statuses[503] > 0
    assert (tally.broken, tally.without_retry_after) == (0, 0)
    assert tally.quantiles_ms()["p99"] < DEADLINE * 1e3
    assert tally.rate() > 0.5 * capacity.rate()
    assert after - before < GROWTH_BYTES
    assert "Traceback" not in server.log.read_text()


def test_a_killed_worker(tmp_path: Path) -> None:
    """Its requests in flight fail, others go on, and within 5 s both workers serve again."""
    server = serve(tmp_path, workers=2)
    try:
        before = {worker.pid for worker in workers(server)}
        assert len(before) == 2
        killed: list[float] = []

        def kill() -> None:
            time.sleep(4)
            os.kill(min(before), signal.SIGKILL)
            killed.append(time.monotonic())

        thread = threading.Thread(target=kill)
        thread.start()
        tally = load(server, clients=16, seconds=12)
        thread.join()
        fresh = {worker.pid for worker in workers(server)}
        ready = httpx.get(server.url + "/readyz").status_code
        recovered = recovery_seconds(server, before, killed[0])
    finally:
        stop(server)
    print(f"\nkilled: {dict(tally.statuses)}, broken {tally.broken}, new worker ready {recovered:.1f} s later")  # noqa: T201
    assert set(tally.statuses) == {200}
    assert tally.broken <= 16
    assert (len(fresh), ready) == (2, 200)
    assert recovered < 5


def recovery_seconds(server: Server, before: set[int], killed: float) -> float:
    """Seconds from the kill until the new worker said in the log that it serves."""
    fresh = next(worker for worker in workers(server) if worker.pid not in before)
    born = fresh.create_time() - time.time() + time.monotonic()
    lines = [line for line in server.log.read_text().splitlines() if " serving " in line]
    stamp = lines[-1].split(" ")[0]
    from datetime import datetime

    served = datetime.strptime(stamp, "%Y-%m-%dT%H:%M:%S%z").timestamp() - time.time() + time.monotonic()
    return max(born, served) - killed
