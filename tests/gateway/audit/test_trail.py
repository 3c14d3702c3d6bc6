"""From decisions to events: which are kept, what of them, and that writing never stands in an answer's way."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import io
import sqlite3
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from prometheus_client import REGISTRY
from sqlalchemy.exc import IntegrityError

from gateway.access.auth import Caller
from gateway.audit.database import sqlite_url
from gateway.audit.event import Record, kind_of
from gateway.audit.mover import Mover
from gateway.audit.spool import Spool
from gateway.audit.store import AuditStore, Filter, Limits, StoredEvent
from gateway.audit.trail import Audit, check_audit
from gateway.audit.writer import SpoolWriter
from gateway.core.decision import Decision
from gateway.core.pipeline import Pipeline
from gateway.errors import AuditUnavailable, ConfigError
from gateway.ids import new_id
from gateway.settings import Settings
from tests.gateway.audit.records import record
from tests.gateway.tiny import clean_image, encode, patched_image, speckled_image

CLEAN, PATCHED, SPECKLED = (encode(image) for image in (clean_image(), patched_image(), speckled_image()))
ALICE = Caller(key_id="alice", role="client", disclosure="full")
LIMITS = Limits(1000, 1 << 30, timedelta(days=10_000))


def counts() -> dict[str, float]:
    results = ("spooled", "unspooled", "failed", "dropped_spool_full", "stored", "duplicate", "refused")
    return {r: REGISTRY.get_sample_value("palisade_audit_events_total", {"result": r}) or 0.0 for r in results}


@pytest.fixture
def counted() -> dict[str, float]:
    """The counters as the test begins, for `since`."""
    return counts()


def since(before: dict[str, float]) -> dict[str, int]:
    return {result: int(n - before[result]) for result, n in counts().items() if n != before[result]}


def settings(folder: Path, **fields: Any) -> Settings:
    return Settings(data_dir=folder, **fields)


def keep(audit: Audit, *decisions: Decision, image: bytes = PATCHED) -> list[StoredEvent]:
    """Record, close, and read the store back, newest first."""
    audit.start()

    async def record_all() -> None:
        for decision in decisions:
            await audit.record(decision, ALICE, new_id(), image)
            await asyncio.sleep(0.002)

    asyncio.run(record_all())
    audit.close()
    return stored(audit)


def stored(audit: Audit) -> list[StoredEvent]:
    assert audit.store is not None
    return audit.store.page(Filter(), limit=200)


def test_a_flagged_input_is_kept_with_all_that_was_found(pipeline: Pipeline, tmp_path: Path) -> None:
    decision = pipeline.decide(PATCHED)
    audit = Audit(settings(tmp_path, audit_sample=0.0))
    (event,) = keep(audit, decision)
    verdict = decision.raw.verdict
    assert (event.kind, event.flagged, event.blocked, event.action) == ("flagged", True, False, "sanitize")
    assert (event.model, event.version, event.stage, event.caller) == ("tiny", "1.0.0", "verdict", "alice")
    assert (event.p_value, event.alpha, event.p_cutoff) == (verdict.p_value, verdict.alpha, verdict.p_cutoff)
    assert event.after is not None
    assert (event.before.label, event.after.label) == ("blue", "red")
    assert event.neutralization is not None
    assert (event.neutralization.area, event.neutralization.changed) == (36 / 256, True)
    assert event.evidence == dict(decision.evidence)
    assert list(event.layers) == ["stem", "stage1"]
    assert event.image_sha256 == hashlib.sha256(PATCHED).hexdigest()
    assert event.pictures == ["input", "saliency", "roi", "roa", "neutral"]
    assert audit.store is not None
    png = audit.store.picture(event.id, "input")
    assert png is not None
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(png))), patched_image())


def test_kinds(pipeline: Pipeline) -> None:
    patched, clean, speckled = (pipeline.decide(image) for image in (PATCHED, CLEAN, SPECKLED))
    assert kind_of(replace(patched, action="block"), sampled=True) == "blocked"
    assert kind_of(patched, sampled=True) == "flagged"
    verdict = replace(patched.raw.verdict, flagged=False)
    unflagged = replace(patched, raw=replace(patched.raw, verdict=verdict))
    assert kind_of(unflagged, sampled=False) == "changed"
    assert kind_of(speckled, sampled=False) is None
    assert kind_of(clean, sampled=False) is None
    assert kind_of(clean, sampled=True) == "sample"


@pytest.mark.parametrize(("privacy", "hashed"), [("none", False), ("hash", True)])
def test_privacy_keeps_no_picture(pipeline: Pipeline, tmp_path: Path, privacy: str, hashed: bool) -> None:
    audit = Audit(settings(tmp_path, audit_privacy=privacy))
    (event,) = keep(audit, pipeline.decide(PATCHED))
    assert (event.image_sha256 is not None) == hashed
    assert event.pictures == []
    with sqlite3.connect(tmp_path / "audit.db") as connection:
        assert connection.execute("SELECT count(*) FROM audit_pictures").fetchone() == (0,)
    connection.close()
    assert b"PNG" not in (tmp_path / "audit.db").read_bytes()


def test_the_sample_is_uniform_and_blind_to_the_content(pipeline: Pipeline, tmp_path: Path) -> None:
    patched, clean = pipeline.decide(PATCHED), pipeline.decide(CLEAN)

    def drawn(name: str, decision: Decision) -> list[bool]:
        audit = Audit(settings(tmp_path / name, audit_sample=0.3, audit_privacy="none"), seed=7)
        audit.start()

        async def draw() -> list[bool]:
            return [await audit.record(decision, None, f"{name}{i:05d}", b"") for i in range(400)]

        spooled = asyncio.run(draw())
        audit.close()
        assert audit.store is not None
        events = [event for i in range(400) if (event := audit.store.get(f"{name}{i:05d}"))]
        assert {event.sample_probability for event in events} == {0.3}
        sampled = {event.id for event in events if event.sampled}
        assert len(events) == sum(spooled)
        return [f"{name}{i:05d}" in sampled for i in range(400)]

    of_clean, of_patched = drawn("clean", clean), drawn("patched", patched)
    assert of_clean == of_patched
    assert 90 <= sum(of_clean) <= 150


def test_images_of_one_request_have_their_own_events(pipeline: Pipeline, tmp_path: Path) -> None:
    audit = Audit(settings(tmp_path))
    audit.start()
    decision = pipeline.decide(PATCHED)
    for i in range(3):
        asyncio.run(audit.record(decision, None, "01REQUEST", PATCHED, index=i))
    audit.close()
    assert [event.id for event in stored(audit)] == ["01REQUEST.002", "01REQUEST.001", "01REQUEST"]


def test_events_of_a_worker_that_died_reach_the_store_once(tmp_path: Path, counted: dict[str, float]) -> None:
    store = AuditStore(sqlite_url(tmp_path / "audit.db"))
    store.prepare()
    dead = Spool(tmp_path / "spool", max_bytes=1 << 30)
    for i in range(250):
        dead.append(record(i))
    store.insert([record(i) for i in range(100)])  # it died between its commit and the removal of the segment
    (segment,) = (tmp_path / "spool").glob("*.spool")
    segment.write_bytes(segment.read_bytes() + b"PAS1torn")
    dead.close()
    damaged = REGISTRY.get_sample_value("palisade_audit_spool_damaged_total") or 0.0

    spool = Spool(tmp_path / "spool", max_bytes=1 << 30)
    mover = Mover(spool, store, LIMITS, interval=0.01)
    mover.start(prepared=True)
    deadline = time.monotonic() + 10
    while len(store.page(Filter(), limit=300)) < 250 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert mover.close()
    assert len(store.page(Filter(), limit=300)) == 250
    assert since(counted) == {"stored": 150, "duplicate": 100}
    assert REGISTRY.get_sample_value("palisade_audit_spool_damaged_total") == damaged + 1
    assert spool.own_bytes == 0


def test_an_event_of_another_version_holds_up_no_other(tmp_path: Path, counted: dict[str, float]) -> None:
    store = AuditStore(sqlite_url(tmp_path / "audit.db"))
    store.prepare()
    spool = Spool(tmp_path / "spool", max_bytes=1 << 30)
    bad = record(1)
    spool.append(Record(bad.event.model_copy(update={"model": None}), {}))
    spool.append(record(2))
    mover = Mover(spool, store, LIMITS, interval=0.01)
    mover.start(prepared=True)
    assert mover.close()
    assert [event.id for event in store.page(Filter(), limit=10)] == [record(2).event.id]
    assert since(counted) == {"refused": 1, "stored": 1}


def test_a_store_that_fails_in_the_midst_gets_each_event_once(tmp_path: Path, counted: dict[str, float]) -> None:
    class Flaky(AuditStore):
        """Fails every third time, and refuses event 120."""

        calls = 0

        def insert(self, records: Sequence[Record]) -> int:
            self.calls += 1
            if self.calls % 3 == 0:
                raise AuditUnavailable("gone")
            if any(entry.event.id == record(120).event.id for entry in records):
                raise IntegrityError("insert", {}, ValueError("no such event, please"))
            return super().insert(records)

    store = Flaky(sqlite_url(tmp_path / "audit.db"))
    store.prepare()
    spool = Spool(tmp_path / "spool", max_bytes=1 << 30)
    for i in range(250):
        spool.append(record(i))
    mover = Mover(spool, store, LIMITS, interval=0.001)
    mover.start(prepared=True)
    deadline = time.monotonic() + 20
    while spool.own_bytes and time.monotonic() < deadline:
        time.sleep(0.01)
    assert mover.close()
    assert since(counted) == {"stored": 249, "refused": 1}


def test_a_folder_that_cannot_be_listed_for_a_while_ends_nothing(tmp_path: Path, counted: dict[str, float]) -> None:
    """As without a file descriptor to spare: every way to look at the folder fails."""

    class Unlisted(Spool):
        listed = threading.Event()

        def _own(self) -> list[Path]:
            if not self.listed.is_set():
                raise OSError(errno.EMFILE, "Too many open files")
            return super()._own()

    store = AuditStore(sqlite_url(tmp_path / "audit.db"))
    store.prepare()
    spool = Unlisted(tmp_path / "spool", max_bytes=1 << 30)
    spool.append(record(1))
    mover = Mover(spool, store, LIMITS, interval=0.01)
    mover.start(prepared=True)
    time.sleep(0.1)
    spool.listed.set()
    assert mover.close()
    assert since(counted) == {"stored": 1}


class StuckSpool(Spool):
    """A spool on a disk that does not answer until it is told to."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, max_bytes=1 << 30)
        self.answers = threading.Event()

    def append(self, record: Record) -> bool:
        self.answers.wait(10)
        return super().append(record)


def test_a_hung_disk_costs_one_wait_and_what_waited_is_written_after(tmp_path: Path, counted: dict[str, float]) -> None:
    spool = StuckSpool(tmp_path)
    writer = SpoolWriter(spool, waiting=15, patience=0.1)
    late = REGISTRY.get_sample_value("palisade_audit_late_total") or 0.0

    async def burst() -> tuple[list[bool], float, list[bool], float]:
        start = time.monotonic()
        first = await asyncio.gather(*(writer.write(lambda i=i: record(i)) for i in range(10)))  # type: ignore[misc]
        waited = time.monotonic() - start
        start = time.monotonic()
        second = [await writer.write(lambda: record(50)) for _ in range(20)]
        return first, waited, second, time.monotonic() - start

    first, waited, second, after = asyncio.run(burst())
    assert not any(first)
    assert not any(second)
    assert 0.1 <= waited < 1.0  # once, not once for each of ten
    assert after < 1.0  # and not again for each of twenty
    assert since(counted) == {"unspooled": 15}
    assert REGISTRY.get_sample_value("palisade_audit_late_total") == late + 15
    spool.answers.set()
    deadline = time.monotonic() + 5
    while since(counted).get("spooled") != 15 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert asyncio.run(writer.write(lambda: record(60)))
    assert writer.close()
    assert since(counted) == {"spooled": 16, "unspooled": 15}


def test_images_of_records_that_wait_are_bounded(tmp_path: Path, counted: dict[str, float]) -> None:
    spool = StuckSpool(tmp_path)
    writer = SpoolWriter(spool, patience=0.01)

    async def burst() -> None:
        for _ in range(10):
            await writer.write(lambda: record(1), size=10_000_000)

    asyncio.run(burst())
    assert since(counted) == {"unspooled": 4}
    spool.answers.set()
    assert writer.close()
    assert since(counted) == {"spooled": 6, "unspooled": 4}


def test_a_full_disk_or_spool_is_counted_and_nothing_is_raised(tmp_path: Path, counted: dict[str, float]) -> None:
    class Broken(Spool):
        def append(self, record: Record) -> bool:
            raise OSError(28, "No space left on device")

    writer = SpoolWriter(Broken(tmp_path / "a", max_bytes=1 << 30))
    assert not asyncio.run(writer.write(lambda: record(1)))
    writer.close()
    writer = SpoolWriter(Spool(tmp_path / "b", max_bytes=10))
    assert not asyncio.run(writer.write(lambda: record(1)))
    writer.close()
    assert since(counted) == {"failed": 1, "dropped_spool_full": 1}


def test_a_request_that_goes_away_leaves_its_event(tmp_path: Path, counted: dict[str, float]) -> None:
    writer = SpoolWriter(Spool(tmp_path, max_bytes=1 << 30))

    async def go_away() -> None:
        task = asyncio.create_task(writer.write(lambda: record(1)))
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    asyncio.run(go_away())
    assert writer.close()
    assert since(counted) == {"spooled": 1}


def test_switched_off_nothing_is_kept(pipeline: Pipeline, tmp_path: Path) -> None:
    audit = Audit(settings(tmp_path, audit=False))
    audit.start()
    assert not asyncio.run(audit.record(pipeline.decide(PATCHED), ALICE, "id", PATCHED))
    audit.close()
    assert audit.store is None
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="PALISADE_DATA_DIR"):
        Audit(settings(tmp_path / "file" / "data")).start()
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "file"))
    by_default = Audit(Settings())
    by_default.start()
    assert by_default.store is None
    with pytest.raises(ConfigError, match="PALISADE_DATA_DIR"):
        Audit(Settings(audit_url="postgresql://127.0.0.1/x")).start()
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "own"))
    own = Audit(Settings())
    own.start()
    own.close()
    folder = tmp_path / "own" / "palisade"
    assert [(folder / name).stat().st_mode & 0o777 for name in ("", "audit.db", "spool")] == [0o700, 0o600, 0o700]


def test_a_schema_of_another_version_stops_the_start(tmp_path: Path) -> None:
    first = Audit(settings(tmp_path))
    first.start()
    first.close()
    with sqlite3.connect(tmp_path / "audit.db") as connection:
        connection.execute("UPDATE audit_schema SET version = 9")
    connection.close()
    for begin in (Audit(settings(tmp_path)).start, lambda: check_audit(settings(tmp_path))):
        with pytest.raises(ConfigError, match="schema version 9"):
            begin()
    assert list((tmp_path / "spool").iterdir()) == []
