"""The shared store: exact limits over processes, compare-and-set, and what happens when it fails."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sqlite3
import time
from multiprocessing.queues import Queue
from multiprocessing.synchronize import Barrier
from pathlib import Path

import pytest
from prometheus_client import REGISTRY

from gateway.access.limits import address_block
from gateway.errors import ConfigError, Conflict, StoreUnavailable
from gateway.versions.shared_state import FILE, FOLDER, LIMITS_FILE, Store, make_folder


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path)


def test_values_have_versions(store: Store, tmp_path: Path) -> None:
    assert store.get("a") == (None, 0)
    first = store.put("a", {"x": 1}, expected=0)
    other = Store(tmp_path)
    assert other.get("a") == ({"x": 1}, first)
    second = other.put("a", {"x": 2}, expected=first)
    with pytest.raises(Conflict, match="changed meanwhile"):
        store.put("a", {"x": 3}, expected=first)
    with pytest.raises(Conflict):
        store.put("a", {"x": 3}, expected=0)
    assert store.get("a") == ({"x": 2}, second)
    assert store.put("b", {}) > second == other.put("a", {"x": 2}, expected=second) - 2
    assert store.version() == other.version() == second + 2


def test_a_bucket_grants_its_burst_and_then_its_rate(store: Store) -> None:
    assert [store.take("k", 2.0, 3, 100.0) for _ in range(3)] == [0.0, 0.0, 0.0]
    assert store.take("k", 2.0, 3, 100.0) == pytest.approx(0.5)
    assert store.take("k", 2.0, 3, 100.4) == pytest.approx(0.1)
    assert store.take("k", 2.0, 3, 100.5) == 0.0
    assert store.take("other", 2.0, 3, 100.5) == 0.0
    granted = sum(store.take("k", 2.0, 3, 101.0 + i / 100) == 0.0 for i in range(1000))
    assert granted == 1 + 2 * 10 - 1  # from 0.5 s after the last one to 110.99
    assert [store.take("k", 2.0, 3, 1000.0) for _ in range(4)][:3] == [0.0, 0.0, 0.0]


def test_costs_above_one_and_tokens_given_back(store: Store) -> None:
    assert store.take("k", 1.0, 4, 0.0, cost=3) == 0.0
    assert store.take("k", 1.0, 4, 0.0, cost=2) == pytest.approx(1.0)
    assert store.take("k", 1.0, 4, 0.0, cost=-1) == 0.0
    assert store.take("k", 1.0, 4, 0.0, cost=2) == 0.0
    # More than the bucket ever holds: granted when it is full, and paid for afterwards.
    assert store.take("k", 1.0, 4, 4.0, cost=10) == 0.0
    assert store.take("k", 1.0, 4, 4.0) == pytest.approx(7.0)


def _take_many(folder: Path, begin: Barrier, taken: Queue[int]) -> None:
    store = Store(folder)
    begin.wait(30)
    count = 0
    for _ in range(200):
        count += store.take("k", 1e-6, 200, time.monotonic()) == 0.0
        time.sleep(0.001)
    taken.put(count)


def test_two_processes_together_grant_exactly_the_limit(tmp_path: Path) -> None:
    Store(tmp_path).prepare()
    context = multiprocessing.get_context("spawn")
    begin, taken = context.Barrier(2), context.Queue()
    processes = [context.Process(target=_take_many, args=(tmp_path, begin, taken)) for _ in range(2)]
    for process in processes:
        process.start()
    counts = [taken.get(timeout=30) for _ in processes]
    for process in processes:
        process.join()
    assert all(count > 0 for count in counts)
    assert sum(counts) == 200


def _hold_lock(folder: Path, ready: Queue[int]) -> None:
    connections = [sqlite3.connect(folder / name, isolation_level=None) for name in (FILE, LIMITS_FILE)]
    for connection in connections:
        connection.execute("BEGIN IMMEDIATE")
    ready.put(1)
    time.sleep(60)


def test_under_a_lock_workers_count_for_themselves_until_its_holder_dies(store: Store, tmp_path: Path) -> None:
    store.prepare()
    failures = REGISTRY.get_sample_value("palisade_store_failures_total", {"operation": "take"}) or 0.0
    context = multiprocessing.get_context("spawn")
    ready: Queue[int] = context.Queue()
    holder = context.Process(target=_hold_lock, args=(tmp_path, ready))
    holder.start()
    ready.get(timeout=30)
    start = time.monotonic()
    assert [store.take("k", 0.001, 2, time.monotonic()) == 0.0 for _ in range(50)] == [True] * 2 + [False] * 48
    assert time.monotonic() - start < 8  # one of them waited for the lock, the others did not
    with pytest.raises(StoreUnavailable):
        store.put("a", {})
    assert store.version() == 0
    assert REGISTRY.get_sample_value("palisade_store_failures_total", {"operation": "take"}) == failures + 1
    assert holder.pid is not None
    os.kill(holder.pid, signal.SIGKILL)
    holder.join()
    assert store.put("a", {}) == 1
    time.sleep(1.0)
    assert store.take("k", 0.001, 1, time.monotonic()) == 0.0
    assert store.take("k", 0.001, 1, time.monotonic()) > 900.0


def test_a_ruined_file(tmp_path: Path) -> None:
    for name in (FILE, LIMITS_FILE):
        (tmp_path / name).write_bytes(b"no database" * 1000)
    store = Store(tmp_path)
    assert store.take("k", 1.0, 1, 0.0) == 0.0
    assert store.take("k", 1.0, 1, 0.0) == 1.0
    with pytest.raises(StoreUnavailable):
        store.get("a")


def test_full_buckets_are_forgotten(store: Store, tmp_path: Path) -> None:
    for i in range(3000):
        store.take(f"address:{i}", 10.0, 1, i * 0.01)
    count = sqlite3.connect(tmp_path / LIMITS_FILE).execute("SELECT count(*) FROM buckets").fetchone()[0]
    assert count < 100


def test_marks(store: Store, tmp_path: Path) -> None:
    store.mark("old", time.time() - 1)
    store.mark("new", time.time() + 60)
    assert Store(tmp_path).marked("new")
    assert not store.marked("old")


def test_the_supervisor_makes_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(FOLDER, "")  # restores what was there
    folder = tmp_path / "a" / "state"
    make_folder(folder)
    assert os.environ[FOLDER] == str(folder)
    assert {(folder / name).stat().st_mode & 0o777 for name in (FILE, LIMITS_FILE)} == {0o600}
    Store(folder).take("k", 0.001, 1, time.monotonic())
    Store(folder).put("kept", {"a": 1})
    make_folder(folder)
    assert Store(folder).take("k", 0.001, 1, time.monotonic()) == 0.0
    assert Store(folder).get("kept")[0] == {"a": 1}
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="PALISADE_STATE_DIR"):
        make_folder(tmp_path / "file" / "below")


@pytest.mark.parametrize(
    ("address", "block"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("2001:db8:1:2:3::4", "2001:db8:1:2::"),
        ("testclient", "testclient"),
    ],
)
def test_addresses(address: str, block: str) -> None:
    assert address_block(address) == block
