"""Local files that hold events until the store has them, one writer each, safe against `kill -9` at any moment.

A record is a frame: magic, length and CRC-32 of the payload, payload (JSON and PNGs). A worker appends frames to its
current segment, a file opened with O_APPEND; a segment that is sealed gets no more. Every worker holds a lock (flock)
on a file of its own as long as it lives, so that what a dead one left is recognised and adopted by renaming: exactly
one process gets each segment, and the store ignores ids that it has.

`append` returns when the kernel has the bytes: they outlive the process. They are on the disk (fdatasync) when their
segment is sealed or `sync` is called, which the mover does about every half second: a power cut can cost that much.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import struct
import threading
import time
import zlib
from collections.abc import Iterator
from pathlib import Path

from gateway.audit.event import Event, Record
from gateway.ids import new_id

_FRAME = struct.Struct("<4sII")  # magic, bytes of the payload, its CRC-32
_MAGIC = b"PAS1"
_JSON = struct.Struct("<I")
SEGMENT_BYTES = 8 << 20
PICTURES_SHARE = 0.9
"""Share of the bound from which on records are spooled without their pictures."""


class SpoolFull(Exception):
    """The spool has reached its bound; the record was not written."""


def pack(record: Record) -> bytes:
    """The frame of a record."""
    sizes = {kind: len(png) for kind, png in record.pictures.items()}
    head = json.dumps({"event": record.event.model_dump(mode="json"), "pictures": sizes}).encode()
    payload = b"".join([_JSON.pack(len(head)), head, *record.pictures.values()])
    return _FRAME.pack(_MAGIC, len(payload), zlib.crc32(payload)) + payload


def unpack(payload: bytes) -> Record:
    """The record of a frame's payload; raises `ValueError` when another version of the gateway wrote it differently."""
    (size,) = _JSON.unpack_from(payload)
    offset = _JSON.size + size
    head = json.loads(payload[_JSON.size : offset])
    pictures = {}
    for kind, length in head["pictures"].items():
        pictures[kind] = payload[offset : offset + length]
        offset += length
    return Record(Event.model_validate(head["event"]), pictures)


def payloads(data: bytes) -> Iterator[bytes | None]:
    """Payloads of a segment's frames; None for a damaged one, after which reading continues if its length is known."""
    offset = 0
    while offset < len(data):
        if len(data) - offset < _FRAME.size:
            yield None
            return
        magic, length, crc = _FRAME.unpack_from(data, offset)
        offset += _FRAME.size
        payload = data[offset : offset + length]
        offset += length
        if magic != _MAGIC or len(payload) < length:
            yield None
            return
        yield payload if zlib.crc32(payload) == crc else None


class Spool:
    """The segments of one worker; `append` is called from one thread, everything else from another."""

    def __init__(self, folder: Path, *, max_bytes: int) -> None:
        """Make the folder and take this worker's lock; `OSError` when that cannot be done."""
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._folder = folder
        self._max_bytes = max_bytes
        self._owner = new_id()
        self._lock_file = folder / f"{self._owner}.lock"
        self._lock_fd = _locked(self._lock_file)
        self._mutex = threading.Lock()
        self._fd: int | None = None
        self._current: Path | None = None
        self._ended: list[int] = []
        self._written = 0
        self._folder_bytes = 0
        self.measure()

    def append(self, record: Record) -> bool:
        """Write a record; False if its pictures were left out because the spool is nearly full.

        Raises `SpoolFull`, or `OSError` (a full or broken disk); what lies in the spool then stays readable.
        """
        data = pack(record)
        with self._mutex:
            whole = not record.pictures or self._folder_bytes + len(data) <= PICTURES_SHARE * self._max_bytes
            if not whole:
                data = pack(Record(record.event, {}))
            if self._folder_bytes + len(data) > self._max_bytes:
                raise SpoolFull
            self._write(data)
            self._folder_bytes += len(data)
            return whole

    def seal(self) -> None:
        """End the current segment, to be moved; the next append begins another."""
        with self._mutex:
            self._end_segment()
        self.sync()

    def sync(self) -> None:
        """Bring everything appended to the disk."""
        with self._mutex:
            current = [] if self._fd is None else [os.dup(self._fd)]  # which may fail, and then loses no other
            descriptors, self._ended = self._ended + current, []
        with contextlib.ExitStack() as stack:
            for fd in descriptors:
                stack.callback(os.close, fd)
            for fd in descriptors:
                os.fdatasync(fd)

    def sealed(self) -> list[Path]:
        """Segments of this worker that are ready to be moved, oldest first."""
        with self._mutex:
            return [path for path in self._own() if path != self._current]

    def remove(self, segment: Path) -> None:
        """Forget a segment that was moved."""
        segment.unlink()
        self.measure()

    def measure(self) -> None:
        """Learn how much all workers have in the folder, for the bound."""
        with self._mutex:
            self._folder_bytes = sum(_size(path) for path in self._folder.glob("*.spool"))

    @property
    def own_bytes(self) -> int:
        """Bytes that wait in this worker's segments."""
        return sum(map(_size, self._own()))

    @property
    def age(self) -> float:
        """Seconds since the oldest segment that waits was begun; 0 when nothing waits."""
        own = [path for path in self._own() if _size(path)]
        return max(0.0, time.time() - _begun(own[0])) if own else 0.0

    def adopt(self) -> int:
        """Take over the segments of workers that are gone; how many there were."""
        owners = {path.name.split(".")[0] for pattern in ("*.lock", "*.spool") for path in self._folder.glob(pattern)}
        return sum(map(self._adopt, owners - {self._owner}))

    def close(self) -> None:
        """Give up the lock: segments that still wait are for others to adopt."""
        with contextlib.suppress(OSError):
            self.seal()
        if not self._own():
            self._lock_file.unlink(missing_ok=True)
        os.close(self._lock_fd)

    def _adopt(self, owner: str) -> int:
        lock_file = self._folder / f"{owner}.lock"
        fd = os.open(lock_file, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)
            return 0
        try:
            segments = sorted(self._folder.glob(f"{owner}.*.spool"))
            for segment in segments:
                segment.rename(segment.with_name(self._owner + segment.name.removeprefix(owner)))
            lock_file.unlink(missing_ok=True)
        finally:
            os.close(fd)
        return len(segments)

    def _write(self, data: bytes) -> None:
        if self._fd is None:
            # The origin keeps the name unique when another worker adopts the segment.
            self._current = self._folder / f"{self._owner}.{time.time_ns():020d}-{self._owner}.spool"
            self._fd = os.open(self._current, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o600)
            self._written = 0
        rest = memoryview(data)
        try:
            while rest:
                rest = rest[os.write(self._fd, rest) :]
        except OSError:
            try:
                os.ftruncate(self._fd, self._written)
            except OSError:  # the damaged record must be the last of its segment
                self._end_segment()
            raise
        self._written += len(data)
        if self._written >= SEGMENT_BYTES:
            self._end_segment()

    def _end_segment(self) -> None:
        if self._fd is not None:
            self._ended.append(self._fd)
        self._fd = self._current = None

    def _own(self) -> list[Path]:
        return sorted(self._folder.glob(f"{self._owner}.*.spool"))


def _locked(lock_file: Path) -> int:
    """A descriptor that holds the lock on a new file, which appears under its name only once it is locked."""
    draft = lock_file.with_suffix(".tmp")
    fd = os.open(draft, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    fcntl.flock(fd, fcntl.LOCK_EX)
    draft.rename(lock_file)
    return fd


def _begun(segment: Path) -> float:
    return int(segment.name.split(".")[1].split("-")[0]) / 1e9


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:  # moved and removed meanwhile
        return 0
