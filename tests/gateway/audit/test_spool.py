"""The spool: whole records after any death of a writer, one adopter, a bound."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from gateway.audit import spool as spools
from gateway.audit.event import Record
from gateway.audit.spool import Spool, SpoolFull, pack, payloads, unpack
from tests.gateway.audit.records import record

BIG = 1 << 30


def waiting(spool: Spool) -> list[int]:
    spool.seal()
    found = (unpack(payload) for path in spool.sealed() for payload in payloads(path.read_bytes()) if payload)
    return [int(found.event.id) for found in found]


def crash(spool: Spool) -> None:
    """What the kernel does when a process is killed: its descriptors close."""
    spool.sync()
    os.close(spool._lock_fd)


def test_records_come_back_as_they_went_in() -> None:
    sent = record(1)
    (payload,) = payloads(pack(sent))
    assert payload is not None
    assert unpack(payload) == sent


@pytest.mark.parametrize("cut", [1, 5, 40, 400])
def test_a_torn_last_record_is_skipped_and_told(cut: int) -> None:
    whole = pack(record(1))
    found = list(payloads(whole + pack(record(2))[:cut]))
    assert len(found) == 2
    assert found[0] == whole[12:]
    assert found[1] is None


def test_a_record_with_a_flipped_bit_costs_no_other() -> None:
    first = bytearray(pack(record(1)))
    first[100] ^= 1
    damaged, sound = payloads(bytes(first) + pack(record(2)))
    assert damaged is None
    assert sound is not None
    assert unpack(sound).event.id == record(2).event.id


def test_appended_records_are_in_the_file_at_once(tmp_path: Path) -> None:
    spool = Spool(tmp_path, max_bytes=BIG)
    assert spool.append(record(1))
    (segment,) = tmp_path.glob("*.spool")
    assert segment.read_bytes() == pack(record(1))
    assert spool.sealed() == []
    assert spool.own_bytes == len(pack(record(1)))
    assert 0.0 <= spool.age < 60.0
    spool.seal()
    assert spool.sealed() == [segment]


def test_segments_end_by_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spools, "SEGMENT_BYTES", 1)
    spool = Spool(tmp_path, max_bytes=BIG)
    for i in range(3):
        spool.append(record(i))
    assert len(spool.sealed()) == 3
    assert waiting(spool) == [0, 1, 2]


def test_what_a_dead_worker_left_is_adopted_once(tmp_path: Path) -> None:
    dead = Spool(tmp_path, max_bytes=BIG)
    dead.append(record(1))
    first, second = (Spool(tmp_path, max_bytes=BIG) for _ in range(2))
    assert first.adopt() == 0
    crash(dead)
    assert (first.adopt(), second.adopt(), first.adopt()) == (1, 0, 0)
    assert waiting(first) == [1]
    crash(first)
    assert second.adopt() == 1
    assert waiting(second) == [1]
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".lock", ".spool"]


def test_a_worker_that_closes_leaves_what_still_waits_and_else_nothing(tmp_path: Path) -> None:
    spool = Spool(tmp_path, max_bytes=BIG)
    spool.append(record(1))
    spool.close()
    heir = Spool(tmp_path, max_bytes=BIG)
    assert heir.adopt() == 1
    for segment in heir.sealed():
        heir.remove(segment)
    heir.close()
    assert list(tmp_path.iterdir()) == []


def test_near_the_bound_pictures_are_left_out_then_events(tmp_path: Path) -> None:
    large = record(0, pictures={"input": bytes(100_000)})
    spool = Spool(tmp_path, max_bytes=200_000)
    assert spool.append(large)
    assert not spool.append(large)
    bare = len(pack(Record(large.event, {})))
    for _ in range((200_000 - len(pack(large))) // bare - 1):
        assert not spool.append(large)
    with pytest.raises(SpoolFull):
        spool.append(large)
    assert spool.own_bytes <= 200_000
    spool.seal()
    spool.remove(spool.sealed()[0])
    assert spool.append(large)


def test_the_bound_counts_what_other_workers_have(tmp_path: Path) -> None:
    other = Spool(tmp_path, max_bytes=BIG)
    other.append(record(0, pictures={"input": bytes(100_000)}))
    with pytest.raises(SpoolFull):
        Spool(tmp_path, max_bytes=100_000).append(record(1))


def test_a_failed_write_leaves_the_segment_readable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spool = Spool(tmp_path, max_bytes=BIG)
    spool.append(record(1))
    write = os.write
    with monkeypatch.context() as patch:
        calls = iter([10])

        def full(fd: int, data: bytes) -> int:
            size = next(calls, None)
            if size is None:
                raise OSError(28, "No space left on device")
            return write(fd, data[:size])

        patch.setattr(os, "write", full)
        with pytest.raises(OSError, match="No space"):
            spool.append(record(2))
    spool.append(record(3))
    assert waiting(spool) == [1, 3]


def test_without_a_descriptor_to_spare_none_is_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spools, "SEGMENT_BYTES", 1)
    spool = Spool(tmp_path, max_bytes=BIG)
    spool.append(record(1))
    monkeypatch.setattr(spools, "SEGMENT_BYTES", BIG)
    spool.append(record(2))

    def none_left(_: int) -> int:
        raise OSError(24, "Too many open files")

    with monkeypatch.context() as patch:
        patch.setattr(os, "dup", none_left)
        with pytest.raises(OSError, match="Too many"):
            spool.sync()
    (ended,) = spool._ended
    spool.sync()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(ended)
    spool.close()


def test_kill_9_loses_no_record_that_was_acknowledged(tmp_path: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from gateway.audit.spool import Spool; "
        "from tests.gateway.audit.records import record\n"
        "spool = Spool(Path(sys.argv[1]), max_bytes=1 << 30)\n"
        "for i in range(100_000): spool.append(record(i)); print(i, flush=True)"
    )
    command = [sys.executable, "-c", script, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[3]) as writer:
        assert writer.stdout is not None
        for line in writer.stdout:
            if int(line) >= 300:
                break
        writer.kill()
        acknowledged = int(line) + sum(1 for rest in writer.stdout if rest.endswith("\n"))
    heir = Spool(tmp_path, max_bytes=BIG)
    assert heir.adopt() >= 1
    found = waiting(heir)
    assert found[: acknowledged + 1] == list(range(acknowledged + 1))
