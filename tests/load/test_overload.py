"""Long loads on a real server; `make load` runs them (`-m load`), PALISADE_LOAD_SECONDS each (120)."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from benchmarks.loadgen import Tally, drive, request_bytes
from benchmarks.servers import images_to_send
from tests.gateway.server import ROOT, Server, served

pytestmark = pytest.mark.load
SECONDS = float(os.environ.get("PALISADE_LOAD_SECONDS", "120"))
DEADLINE = 2.0
GROWTH_BYTES = 60_000_000
MODEL = ROOT / "models" / "gtsrb"


def load(
    server: Server, *, clients: int, seconds: float, path: str = "/v1/predict", rate: float | None = None
) -> Tally:
    requests = [request_bytes(server.url + path, image) for image in images_to_send(None)]
    return asyncio.run(drive(server.url, requests, clients=clients, seconds=seconds, rate=rate))


def worker_bytes(server: Server) -> int:
    """Resident size of the largest process."""
    return max(process.memory_info().rss for process in psutil.Process(server.process.pid).children(recursive=True))


@pytest.mark.parametrize("path", ["/v1/predict", "/v1/predict?explain=all"], ids=["verdict", "all expensive"])
def test_twice_the_capacity(tmp_path: Path, path: str) -> None:
    """Only 200, 429 and 503 with Retry-After; accepted requests keep p99 under the deadline; memory stays flat."""
    with served(MODEL, tmp_path, request_timeout=DEADLINE, cascade=True, audit=False, max_waiting=10_000) as server:
        capacity = load(server, clients=64, seconds=6, path=path).rate()
        # Connections enough that the rate is kept up also while all of them wait for the deadline.
        twice: dict[str, Any] = {"clients": int(2 * capacity * DEADLINE), "rate": 2 * capacity, "path": path}
        load(server, seconds=5, **twice)
        before = worker_bytes(server)
        tally = load(server, seconds=SECONDS, **twice)
        growth = worker_bytes(server) - before
    print(  # noqa: T201
        f"\n{path}: capacity {capacity:.0f}/s, asked twice that for {tally.elapsed:.0f} s: {dict(tally.statuses)},"
        f" accepted {tally.rate():.0f}/s, {tally.quantiles_ms()}, memory {growth / 1e6:+.1f} MB"
    )
    assert set(tally.statuses) <= {200, 429, 503}
    assert tally.statuses[503] > 0
    assert (tally.broken, tally.without_retry_after) == (0, 0)
    assert tally.quantiles_ms()["p99"] < DEADLINE * 1e3
    assert tally.rate() > 0.5 * capacity
    assert growth < GROWTH_BYTES


def test_a_killed_worker(tmp_path: Path) -> None:
    """Its requests in flight fail, others go on, and within 5 s both workers serve again."""
    with served(MODEL, tmp_path, workers=2, threads=1, audit=False) as server, ThreadPoolExecutor(1) as pool:
        before = ready_pids(server)
        loaded = pool.submit(load, server, clients=16, seconds=15)
        time.sleep(4)
        os.kill(min(before), signal.SIGKILL)
        killed = time.monotonic()
        while len(ready_pids(server) - {min(before)}) < 2 and time.monotonic() < killed + 15:
            time.sleep(0.05)
        recovered = time.monotonic() - killed
        tally = loaded.result()
    print(f"\nkilled: {dict(tally.statuses)}, broken {tally.broken}, two ready again after {recovered:.1f} s")  # noqa: T201
    assert len(before) == 2
    assert set(tally.statuses) == {200}
    assert tally.broken <= 16
    assert recovered < 5


def ready_pids(server: Server) -> set[int]:
    """Workers that say they are ready."""
    try:
        state = httpx.get(server.url + "/v1/admin/models", timeout=5).json()
    except httpx.TransportError:
        return set()
    return {worker["pid"] for worker in state["workers"] if worker["ready"]}
