"""The audit trail under fault: full disk, locked and lost databases, `kill -9`; and at its full size."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest
import sqlalchemy as sa
from prometheus_client import REGISTRY

from gateway.audit.database import sqlite_url
from gateway.audit.store import AuditStore, Filter, Limits
from gateway.audit.trail import Audit
from gateway.core.decision import Decision
from gateway.errors import ConfigError
from gateway.ids import new_id
from gateway.settings import Settings
from gateway.versions.registry import load_pipeline
from tests.e2e.audit_postgres import Postgres
from tests.gateway.audit.records import NOON, record
from tests.gateway.tiny import encode, patched_image, write_bundle

pytestmark = pytest.mark.e2e

ROOT = Path(__file__).resolve().parents[2]
IMAGE = encode(patched_image())
RESULTS = ("spooled", "unspooled", "failed", "dropped_spool_full", "stored", "duplicate", "refused")
EVERYTHING = Filter()


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bundle(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="module")
def flagged(bundle: Path) -> Decision:
    decision = load_pipeline(bundle, Settings(threads=1)).decide(IMAGE)
    assert decision.flagged
    return decision


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 4 MB."""
    if os.getuid() != 0:
        pytest.skip("mounting needs root")
    folder = tmp_path / "disk"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(folder)], check=True)
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def counts() -> dict[str, float]:
    return {r: REGISTRY.get_sample_value("palisade_audit_events_total", {"result": r}) or 0.0 for r in RESULTS}


def since(before: dict[str, float]) -> dict[str, int]:
    return {result: int(n - before[result]) for result, n in counts().items()}


def adds_up(before: dict[str, float], recorded: int) -> dict[str, int]:
    """Every event is accounted for: spooled or lost in a way that is told, and what was spooled is in the store."""
    now = since(before)
    assert now["spooled"] + now["unspooled"] + now["failed"] + now["dropped_spool_full"] == recorded, now
    assert now["stored"] == now["spooled"], now
    assert now["refused"] == now["duplicate"] == 0, now
    return now


def record_burst(audit: Audit, decision: Decision, n: int, *, pause: float = 0.0) -> tuple[set[str], float]:
    """Record n times, one after the other; which ids were acknowledged, and the longest wait in seconds."""

    async def burst() -> tuple[set[str], float]:
        acknowledged, longest = set(), 0.0
        for _ in range(n):
            request = new_id()
            start = time.perf_counter()
            if await audit.record(decision, None, request, IMAGE):
                acknowledged.add(request)
            longest = max(longest, time.perf_counter() - start)
            await asyncio.sleep(pause)
        return acknowledged, longest

    return asyncio.run(burst())


def wait_for(condition: Callable[[], bool], seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)


def ids(store: AuditStore) -> list[str]:
    found: list[str] = []
    while page := store.page(EVERYTHING, limit=1000, before=found[-1] if found else None):
        found += [event.id for event in page]
    return found


def started(folder: Path, **settings: object) -> Audit:
    audit = Audit(Settings(data_dir=folder, **settings))  # type: ignore[arg-type]
    audit.start()
    return audit


def test_a_full_disk(flagged: Decision, small_disk: Path) -> None:
    before = counts()
    audit = started(small_disk)
    ballast = small_disk / "ballast"
    with ballast.open("wb") as file, contextlib.suppress(OSError):
        file.write(bytes(3_500_000))
    first, longest = record_burst(audit, flagged, 2000)
    mid = since(before)
    assert mid["failed"] > 0, mid
    assert longest < 2.0  # 0.5 s of patience, on a busy machine
    ballast.unlink()
    second, _ = record_burst(audit, flagged, 200)
    wait_for(lambda: since(before)["stored"] == since(before)["spooled"])
    audit.close()
    now = adds_up(before, 2200)
    assert now["failed"] == mid["failed"], "events were lost after there was room again"
    print(f"full disk: {now}, longest wait {longest * 1e3:.1f} ms")  # noqa: T201
    assert audit.store is not None
    stored = ids(audit.store)
    assert first | second <= set(stored)
    assert len(stored) == now["spooled"]


def test_a_locked_database(flagged: Decision, tmp_path: Path) -> None:
    before = counts()
    audit = started(tmp_path)
    blocker = sqlite3.connect(tmp_path / "audit.db", isolation_level=None)
    blocker.execute("BEGIN IMMEDIATE")
    start = time.monotonic()
    recorded, acknowledged, longest = 0, set[str](), 0.0
    while time.monotonic() < start + 8.0:
        more, wait = record_burst(audit, flagged, 50, pause=0.002)
        recorded, acknowledged, longest = recorded + 50, acknowledged | more, max(longest, wait)
    assert audit.store is not None
    assert audit.store.page(EVERYTHING, limit=10) == []  # readers are not locked out
    blocker.rollback()
    blocker.close()
    wait_for(lambda: since(before)["stored"] == recorded)
    audit.close()
    now = adds_up(before, recorded)
    print(f"locked: {now}, longest wait {longest * 1e3:.1f} ms")  # noqa: T201
    assert acknowledged <= set(ids(audit.store))


def test_postgresql_gone_and_back(flagged: Decision, tmp_path: Path, postgres: Postgres) -> None:
    before = counts()
    audit = started(tmp_path, audit_url=postgres.url)
    acknowledged, longest = record_burst(audit, flagged, 200)
    wait_for(lambda: since(before)["stored"] == 200)
    postgres.stop()
    recorded = 200
    start = time.monotonic()
    while time.monotonic() < start + 4.0:
        more, wait = record_burst(audit, flagged, 50, pause=0.002)
        recorded, acknowledged, longest = recorded + 50, acknowledged | more, max(longest, wait)
    assert since(before)["stored"] == 200
    assert (REGISTRY.get_sample_value("palisade_audit_spool_bytes") or 0) > 100_000
    assert (REGISTRY.get_sample_value("palisade_audit_spool_age_seconds") or 0) > 2.0
    postgres.start()
    more, _ = record_burst(audit, flagged, 50)
    recorded, acknowledged = recorded + 50, acknowledged | more
    wait_for(lambda: since(before)["stored"] == recorded)
    wait_for(lambda: REGISTRY.get_sample_value("palisade_audit_spool_bytes") == 0)
    audit.close()
    now = adds_up(before, recorded)
    print(f"gone and back: {now}, longest wait {longest * 1e3:.1f} ms")  # noqa: T201
    assert audit.store is not None
    assert acknowledged <= set(ids(audit.store))


def test_a_gateway_that_starts_without_its_database_and_stops_before_it_is_back(
    flagged: Decision, tmp_path: Path, postgres: Postgres
) -> None:
    before = counts()
    postgres.stop()
    audit = started(tmp_path, audit_url=postgres.url)
    acknowledged, _ = record_burst(audit, flagged, 100)
    audit.close()
    postgres.start()
    heir = started(tmp_path, audit_url=postgres.url)
    wait_for(lambda: since(before)["stored"] == 100)
    heir.close()
    adds_up(before, 100)
    assert heir.store is not None
    assert acknowledged <= set(ids(heir.store))
    assert list((tmp_path / "spool").iterdir()) == []


def test_a_spool_at_its_bound_gives_up_pictures_first(flagged: Decision, tmp_path: Path, postgres: Postgres) -> None:
    before = counts()
    pictures = REGISTRY.get_sample_value("palisade_audit_pictures_dropped_total") or 0.0
    audit = started(tmp_path, audit_url=postgres.url, audit_spool_bytes=400_000)
    postgres.stop()
    record_burst(audit, flagged, 600)
    bare = (REGISTRY.get_sample_value("palisade_audit_pictures_dropped_total") or 0.0) - pictures
    assert since(before)["dropped_spool_full"] > 0
    assert bare > 0
    assert sum(path.stat().st_size for path in (tmp_path / "spool").glob("*.spool")) <= 400_000
    postgres.start()
    wait_for(lambda: since(before)["stored"] == since(before)["spooled"])
    audit.close()
    now = adds_up(before, 600)
    print(f"spool full: {now}, {bare:.0f} without pictures")  # noqa: T201
    assert audit.store is not None
    stored = audit.store.page(EVERYTHING, limit=1000)
    assert sum(not event.pictures for event in stored) == bare


def test_a_user_without_rights_stops_the_start(tmp_path: Path, postgres: Postgres) -> None:
    with sa.create_engine(postgres.url.replace("postgresql:", "postgresql+psycopg:")).begin() as connection:
        connection.execute(sa.text("CREATE ROLE guest LOGIN"))
    with pytest.raises(ConfigError, match="permission denied"):
        started(tmp_path, audit_url=postgres.url.replace("palisade@", "guest@"))


def test_gateways_on_one_postgresql_show_one_list(flagged: Decision, tmp_path: Path, postgres: Postgres) -> None:
    with ThreadPoolExecutor(4) as pool:  # at once, on an empty database
        audits = list(pool.map(lambda i: started(tmp_path / str(i), audit_url=postgres.url), range(4)))
        bursts = list(pool.map(lambda audit: record_burst(audit, flagged, 100)[0], audits))
    acknowledged = set().union(*bursts)
    stores = [audit.store for audit in audits if audit.store is not None]
    wait_for(lambda: len(ids(stores[0])) == 400)
    lists = [ids(store) for store in stores]
    assert acknowledged <= set(lists[0])
    assert lists[1:] == lists[:1] * 3
    reviewed = stores[0].review(lists[0][7], {"review": "confirmed"}, reviewer="rita")
    assert stores[1].get(lists[0][7]) == reviewed
    png = stores[2].picture(lists[0][0], "input")
    assert png == stores[3].picture(lists[0][0], "input")
    assert png is not None
    now = datetime.now(UTC) + timedelta(days=1)
    assert sorted(store.lease("retention", seconds=60, now=now) for store in stores) == [False, False, False, True]
    seqs = [event.seq for event in stores[0].after(0, limit=1000)]
    assert seqs == sorted(set(seqs))
    for audit in audits:
        audit.close()


def test_a_follower_on_postgresql_misses_no_event_of_writers_at_once(tmp_path: Path, postgres: Postgres) -> None:
    stores = [AuditStore(postgres.url) for _ in range(5)]
    stores[0].prepare()

    def write(worker: int) -> None:
        for i in range(60):
            stores[worker].insert([record(worker * 1000 + i, pictures={})])

    seen: list[str] = []
    with ThreadPoolExecutor(4) as pool:
        jobs = [pool.submit(write, worker) for worker in range(4)]
        seq, last = 0, False
        while not last:
            last = all(job.done() for job in jobs)
            for event in stores[4].after(seq, limit=50):
                seq = event.seq
                seen.append(event.id)
            last = last and seq == stores[4].last_seq()
    assert len(seen) == len(set(seen)) == 240


def test_what_postgresql_refuses_holds_up_no_other(tmp_path: Path, postgres: Postgres) -> None:
    audit = started(tmp_path, audit_url=postgres.url)
    before = counts()
    assert audit._spool is not None
    assert audit._writer is not None
    for model in ("tiny", "a\0b", "tiny"):
        entry = record(sum(since(before).values()), model=model)
        assert asyncio.run(audit._writer.write(lambda entry=entry: entry))  # type: ignore[misc]
    wait_for(lambda: since(before)["stored"] + since(before)["refused"] == 3)
    audit.close()
    assert (since(before)["stored"], since(before)["refused"]) == (2, 1)


@pytest.mark.parametrize("backend", ["sqlite", "postgresql"])
def test_kill_9_in_a_burst_loses_nothing_that_was_acknowledged(
    bundle: Path, tmp_path: Path, backend: str, request: pytest.FixtureRequest
) -> None:
    url = request.getfixturevalue("postgres").url if backend == "postgresql" else None
    acknowledged: set[str] = set()
    for i in range(5):
        command = [sys.executable, "-m", "tests.e2e.audit_burst", str(bundle), str(tmp_path), *([url] if url else [])]
        with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            first = process.stdout.readline()
            # At other moments of the mover's half second.
            stop = time.monotonic() + 0.6 + 0.23 * i
            lines = [first]
            while time.monotonic() < stop:
                lines.append(process.stdout.readline())
            process.kill()
            lines += process.stdout.readlines()
        acknowledged |= {line.strip() for line in lines if line.endswith("\n")}
    left = sum(path.stat().st_size for path in (tmp_path / "spool").glob("*.spool"))
    heir = started(tmp_path, audit_url=url)
    wait_for(lambda: not any(path for path in (tmp_path / "spool").glob("*.spool")))
    assert heir.store is not None
    found = ids(heir.store)
    heir.close()
    print(f"kill -9, {backend}: {len(acknowledged)} acknowledged, {len(found)} stored, {left} bytes adopted last")  # noqa: T201
    assert len(found) == len(set(found))
    assert acknowledged <= set(found)
    # Beyond them only what was written and not yet acknowledged: at most the 8 clients' one each, five times.
    assert len(found) - len(acknowledged) <= 5 * 8


@contextmanager
def ending(process: subprocess.Popen[bytes]) -> Iterator[None]:
    """A test that fails does not wait for the process that it has started."""
    try:
        yield
    finally:
        process.kill()


def test_an_open_stream_does_not_hold_up_a_stop(tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "tests.e2e.audit_app", str(tmp_path), str(port)]
    with subprocess.Popen(command, cwd=ROOT) as process, ending(process):
        wait_for(lambda: _listens(port))
        with httpx.stream("GET", f"http://127.0.0.1:{port}/v1/events/stream", timeout=30) as response:
            lines = response.iter_lines()
            assert next(lines) == "retry: 2000"
            start = time.monotonic()
            process.terminate()
            assert list(lines) == [""]
        process.wait(20)
        assert time.monotonic() - start < 10


@pytest.mark.parametrize("backend", ["sqlite", "postgresql"])
def test_fifty_thousand_events(tmp_path: Path, backend: str, request: pytest.FixtureRequest) -> None:
    n = 50_000
    store = AuditStore(
        request.getfixturevalue("postgres").url if backend == "postgresql" else sqlite_url(tmp_path / "audit.db")
    )
    store.prepare()
    png = os.urandom(1500)
    start = time.perf_counter()
    for first in range(0, n + 2000, 500):
        store.insert([_varied(i, png) for i in range(first, first + 500)])
    inserted = time.perf_counter() - start
    for i in range(0, n, 5000):
        store.review(f"{i + 3000:026d}", {"review": "false_positive"}, reviewer=None)

    forever = timedelta(days=10_000)
    start = time.perf_counter()
    assert store.retain(Limits(n, 1 << 40, forever), now=NOON) == 2000
    by_count = time.perf_counter() - start
    size = store.stats(EVERYTHING).picture_bytes
    start = time.perf_counter()
    store.retain(Limits(n, size - 3_000_000, forever), now=NOON)
    by_bytes = time.perf_counter() - start
    stats = store.stats(EVERYTHING)
    assert (stats.events, size - 3_000_000 - 3000 <= stats.picture_bytes <= size - 3_000_000) == (n, True)

    middle = f"{n // 2:026d}"
    queries = {
        "first page": lambda: store.page(EVERYTHING, limit=50),
        "200 a page": lambda: store.page(EVERYTHING, limit=200),
        "from the middle": lambda: store.page(EVERYTHING, limit=50, before=middle),
        "model": lambda: store.page(Filter(model="other"), limit=50),
        "kind": lambda: store.page(Filter(kind="changed"), limit=50),
        "review, ten hits": lambda: store.page(Filter(review="false_positive"), limit=50),
        "no hit": lambda: store.page(Filter(review="confirmed", model="tiny", kind="blocked"), limit=50),
        "a minute long ago": lambda: store.page(
            Filter(since=NOON + timedelta(seconds=5000), until=NOON + timedelta(seconds=5060)), limit=50
        ),
        "follow": lambda: store.after(store.last_seq() - 20, limit=100),
        "stats": lambda: store.stats(EVERYTHING),
    }
    times = {name: sorted(_timed(query) for _ in range(15)) for name, query in queries.items()}
    shown = ", ".join(f"{name} {taken[0] * 1e3:.1f} / {taken[7] * 1e3:.1f}" for name, taken in times.items())
    print(  # noqa: T201
        f"{backend}, {n} events (inserted in {inserted:.0f} s), load {os.getloadavg()[0]:.1f}: best / median ms: "
        f"{shown}; retention of 2000 events {by_count:.2f} s, of 3 MB of pictures {by_bytes:.2f} s"
    )
    # The best: what other programs of the machine take is not the store's.
    assert times.pop("stats")[0] < 0.3
    assert max(taken[0] for taken in times.values()) < 0.1, times
    store.close()


def _varied(i: int, png: bytes):
    kind = ("flagged", "flagged", "changed", "sample", "blocked")[i % 5]
    model = "other" if i % 10 == 0 else "tiny"
    fields = {"kind": kind, "model": model, "flagged": kind in ("flagged", "blocked"), "sampled": kind == "sample"}
    return record(i, pictures={"input": png, "roa": png}, **fields)


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _timed(job: Callable[[], object]) -> float:
    start = time.perf_counter()
    job()
    return time.perf_counter() - start
