"""The audit trail of a real gateway of two workers: what was answered is in the list, also when a worker is killed."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import psutil
import pytest

from tests.gateway.server import Server, start, stop, wait_until_ready
from tests.gateway.tiny import clean_image, encode, patched_image, write_bundle

pytestmark = pytest.mark.e2e

CLEAN, PATCHED = encode(clean_image()), encode(patched_image())
CLIENTS = 8
_PREFIX = "palisade_audit_events_total"


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bundle(tmp_path_factory.mktemp("models") / "tiny").parent


@pytest.fixture(scope="module")
def server(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    running = start(models, tmp_path_factory.mktemp("server"), workers=2, audit_sample=0.0)
    try:
        wait_until_ready(running)
        yield running
    finally:
        stop(running)


def burst(server: Server, seconds: float) -> tuple[set[str], int]:
    """Send attacked and clean images in turns; ids of the flagged answers, and how many requests got none."""
    until = time.monotonic() + seconds

    def client(_: int) -> tuple[set[str], int]:
        flagged, failed, turn = set(), 0, 0
        with httpx.Client(base_url=server.url, timeout=30) as session:
            while time.monotonic() < until:
                turn += 1
                try:
                    answer = session.post("/v1/predict", content=(CLEAN, PATCHED)[turn % 2])
                except httpx.TransportError:
                    failed += 1
                    continue
                assert answer.status_code == 200, answer.text
                if answer.json()["verdict"]["flagged"]:
                    flagged.add(answer.json()["id"])
        return flagged, failed

    with ThreadPoolExecutor(CLIENTS) as pool:
        done = list(pool.map(client, range(CLIENTS)))
    return set[str]().union(*(ids for ids, _ in done)), sum(failed for _, failed in done)


def listed(server: Server) -> list[str]:
    ids: list[str] = []
    cursor: str | None = ""
    while cursor is not None:
        url = f"{server.url}/v1/events?limit=200" + (f"&cursor={cursor}" if cursor else "")
        page = httpx.get(url, timeout=30).json()
        ids += [event["id"] for event in page["events"]]
        cursor = page["next"]
    return ids


def settled(server: Server) -> dict[str, int]:
    """Counts of events by result once all that was spooled is stored."""
    deadline = time.monotonic() + 30
    while True:
        values = server.metrics()
        counts = {name.split('"')[1]: int(n) for name, n in values.items() if name.startswith(_PREFIX)}
        if counts["stored"] == counts["spooled"] or time.monotonic() > deadline:
            return counts
        time.sleep(0.2)


def test_what_was_flagged_adds_up_and_is_listed(server: Server) -> None:
    flagged, failed = burst(server, 4.0)
    assert failed == 0
    assert len(flagged) > 20
    counts = settled(server)
    told = sum(n for name, n in server.metrics().items() if name.startswith("palisade_flagged_total"))
    lost = counts["unspooled"] + counts["failed"] + counts["dropped_spool_full"]
    print(f"{len(flagged)} flagged answers: {counts}")  # noqa: T201
    assert (counts["spooled"], lost, told) == (len(flagged), 0, len(flagged))
    assert counts["stored"] == counts["spooled"]
    events = listed(server)
    assert len(events) == len(set(events))
    assert set(events) == flagged
    picture = httpx.get(f"{server.url}/v1/events/{events[0]}/image?kind=input")
    assert (picture.status_code, picture.content[:4]) == (200, b"\x89PNG")


def test_a_worker_killed_in_a_burst_loses_nothing_that_was_answered(server: Server) -> None:
    before = set(listed(server))
    with ThreadPoolExecutor(1) as pool:
        sending = pool.submit(burst, server, 12.0)
        for _ in range(2):
            time.sleep(3.0)
            workers = [
                child.pid
                for child in psutil.Process(server.process.pid).children(recursive=True)
                if "_bentoml_impl.worker.service" in " ".join(child.cmdline())
            ]
            os.kill(workers[0], signal.SIGKILL)
        flagged, failed = sending.result()
    wait_until_ready(server)
    deadline = time.monotonic() + 30
    while not flagged <= (events := set(listed(server)) - before) and time.monotonic() < deadline:
        time.sleep(0.5)
    print(f"two workers killed: {len(flagged)} flagged answers, {failed} without one, {len(events)} events")  # noqa: T201
    assert len(flagged) > 20
    assert flagged <= events
    # What was spooled and not answered any more: at most one a client and kill.
    assert len(events - flagged) <= 2 * CLIENTS


def test_the_list_outlives_the_server(models: Path, tmp_path: Path) -> None:
    first = start(models, tmp_path)
    try:
        wait_until_ready(first)
        ids = [first.post(content=PATCHED).json()["id"] for _ in range(5)]
    finally:
        stop(first)
    assert list((tmp_path / "data" / "spool").iterdir()) == []
    second = start(models, tmp_path)
    try:
        wait_until_ready(second)
        assert listed(second) == ids[::-1]
    finally:
        stop(second)
