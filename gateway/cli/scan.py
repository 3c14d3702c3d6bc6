"""Images, judged into a report of one JSON line a file that a later run resumes (`palisade scan`)."""

from __future__ import annotations

import fcntl
import hashlib
import json
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import IO, Any, Protocol, get_args

from gateway.cli.archives import Shard
from gateway.cli.files import Image
from gateway.cli.shards import read_members
from gateway.cli.sources import Body, Setup, Source, SourceFailed
from gateway.core.verdict import Level
from gateway.errors import (
    ConfigError,
    DamagedShard,
    EmptyBody,
    PalisadeError,
    UndecodableImage,
    UnsupportedMediaType,
)

Row = dict[str, Any]
"""One line of the report."""

_JUDGED = ("label", "probability", "flagged", "level", "p_value", "p_cutoff", "neutralized", "certificate")
_FOUND = (*_JUDGED, "error", "detail")
# Reports of earlier versions have not the later ones.
_LATER = ("level", "certificate", "certified", "votes", "pool")
_KEYS = ("path", "size", "mtime", "sha256", "flagged", "neutralized", "error", *_LATER, *Setup._fields)
_FIRST_KEY = b'{"path": '
# Errors that depend on the bytes alone, so that a retry would fail in the same way. An image is too large by settings.
_LASTING = frozenset(
    {None, *(error.code for error in (DamagedShard, EmptyBody, UnsupportedMediaType, UndecodableImage))}
)


@dataclass
class Tally:
    """Counts over files; `errors` by code, `certificates` by level."""

    files: int = 0
    flagged: int = 0
    suspect: int = 0
    neutralized: int = 0
    certificates: Counter[str] = field(default_factory=Counter)
    errors: Counter[str] = field(default_factory=Counter)

    def add(self, row: Row) -> None:
        self.files += 1
        self.flagged += bool(row["flagged"])
        self.suspect += row.get("level") == "suspect"
        self.neutralized += bool(row["neutralized"])
        if row.get("certificate") is not None:
            self.certificates[row["certificate"]] += 1
        if row["error"] is not None:
            self.errors[row["error"]] += 1

    @property
    def judged(self) -> int:
        return self.files - self.errors.total()


class Report:
    """A file of rows, read and appended to. A last line that a kill left torn is cut off.

    Raises `ConfigError` for a file that cannot be written, that another scan writes, or that is something else, which
    is left as it is.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        with ExitStack() as undo:
            try:
                self._file = undo.enter_context(path.open("ab", buffering=0))
                _lock(self._file, path)
                rows, whole = _read_rows(path)
                self._file.truncate(whole)
            except OSError as error:
                raise ConfigError(f"{path}: {error.strerror}") from None
            undo.pop_all()
        self._rows = {row["path"]: row for row in rows}

    def find(self, file: Image, setup: Setup) -> Row | None:
        """The row of a file that has not changed since (same size and time, or same content), judged by `setup`."""
        row = self._rows.get(file.name)
        if row is None or row["error"] not in _LASTING or tuple(row[name] for name in Setup._fields) != setup:
            return None
        try:
            size, mtime = file.stat()
            if row["size"] != size:
                return None
            unchanged = mtime is not None and row["mtime"] == mtime
            if unchanged or row["sha256"] == hashlib.sha256(file.read()).hexdigest():
                return row
        except PalisadeError:
            pass
        return None

    def append(self, rows: Iterable[Row]) -> None:
        """Write rows at once, so that an interruption falls between lines."""
        left = "".join(json.dumps(row) + "\n" for row in rows).encode()
        try:
            while left:  # a disk that is nearly full takes a part without an error
                left = left[self._file.write(left) :]
        except OSError as error:
            raise ConfigError(f"{self._path}: {error.strerror}") from None

    def close(self) -> None:
        self._file.close()


class Scanner(Protocol):
    """What reads and judges images: this process, or workers on Ray (`gateway.cli.ray_workers`)."""

    @property
    def setup(self) -> Setup: ...

    def members(self, shards: Sequence[Shard]) -> Iterable[list[Image]]:
        """The images in each of the shards, in their order."""

    def rows(self, files: Sequence[Image]) -> Iterator[list[Row]]:
        """One row for each file, in pieces; raises what the source of answers raises."""


@dataclass(frozen=True)
class Here:
    """The scanner that is this process; `batch` images at a time, while the next are read in `threads`."""

    source: Source
    batch: int
    threads: int

    @property
    def setup(self) -> Setup:
        return self.source.setup

    def members(self, shards: Sequence[Shard]) -> Iterable[list[Image]]:
        """See `Scanner`."""
        return map(read_members, shards)

    def rows(self, files: Sequence[Image]) -> Iterator[list[Row]]:
        """See `Scanner`."""
        return judged(files, self.source, batch=self.batch, threads=self.threads)


def judged(files: Iterable[Image], source: Source, *, batch: int, threads: int) -> Iterator[list[Row]]:
    """The rows of `files` in their order, `batch` at a time, while the next are read and decoded in `threads`.

    A file that cannot be read or decoded gets a row with `error`. Passes on errors of `source` that do not concern one
    image.
    """
    setup = source.setup
    todo = iter(files)
    waiting: deque[Future[_Prepared]] = deque()
    with _threads(threads) as pool:
        while True:
            for file in islice(todo, 2 * batch - len(waiting)):
                waiting.append(pool.submit(_prepare, file, source))
            if not waiting:
                return
            yield _judge([waiting.popleft().result() for _ in range(min(batch, len(waiting)))], source, setup)


def failed(file: Image, error: PalisadeError, setup: Setup) -> Row:
    """The row of a file for which nothing could be found out."""
    return _row(_Prepared(file), error, setup)


@dataclass(frozen=True)
class _Prepared:
    file: Image
    size: int | None = None
    mtime: float | None = None
    sha256: str | None = None
    value: Any = None
    error: PalisadeError | None = None


def _prepare(file: Image, source: Source) -> _Prepared:
    known: dict[str, Any] = {}
    try:
        # The time of before it is read: what changes meanwhile is judged again by the next run.
        size, mtime = file.stat()
        known = {"size": size, "mtime": mtime}
        data = file.read()
        known |= {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        return _Prepared(file, **known, value=source.prepare(data))
    except SourceFailed:
        raise
    except PalisadeError as error:
        return _Prepared(file, **known, error=error)


def _judge(ready: Sequence[_Prepared], source: Source, setup: Setup) -> list[Row]:
    sound = [prepared for prepared in ready if prepared.error is None]
    answers = iter(source.judge([prepared.value for prepared in sound]) if sound else [])
    return [_row(prepared, prepared.error or next(answers), setup) for prepared in ready]


def _row(prepared: _Prepared, answer: Body | PalisadeError, setup: Setup) -> Row:
    row: Row = {"path": prepared.file.name, "size": prepared.size, "mtime": prepared.mtime}
    row |= {"sha256": prepared.sha256, **setup._asdict()}
    row |= dict.fromkeys(_FOUND)
    if not isinstance(answer, PalisadeError):
        verdict, neutralization = answer.get("verdict") or {}, answer.get("neutralization") or {}
        row |= {name: answer["prediction"].get(name) for name in ("label", "probability")}
        row |= {name: verdict.get(name) for name in ("flagged", "level", "p_value", "p_cutoff")}
        certificate = answer.get("certificate") or {}
        return row | {"neutralized": neutralization.get("served"), "certificate": certificate.get("level")}
    if answer.code == "blocked_by_policy":
        level = answer.detail.partition(":")[0]
        return row | {"flagged": level != "suspect", "level": level if level in get_args(Level) else None}
    return row | {"error": answer.code, "detail": answer.detail}


@contextmanager
def _threads(count: int) -> Iterator[ThreadPoolExecutor]:
    pool = ThreadPoolExecutor(count, thread_name_prefix="palisade-scan")
    try:
        yield pool
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _lock(file: IO[bytes], path: Path) -> None:
    """Keep the file for this process until it is closed, where its file system has locks."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise ConfigError(f"{path}: another palisade scan is writing it") from None
    except OSError:
        pass


def _read_rows(path: Path) -> tuple[list[Row], int]:
    """The rows of a report, and its size without a torn last line, which must look like ours."""
    rows: list[Row] = []
    whole = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.endswith(b"\n") and line[: len(_FIRST_KEY)] == _FIRST_KEY[: len(line)]:
                break
            try:
                row = json.loads(line)
                rows.append({name: row.get(name) if name in _LATER else row[name] for name in _KEYS})
            except (ValueError, KeyError, TypeError):
                raise ConfigError(f"{path}: line {number} is not one of palisade scan; choose another --out") from None
            whole += len(line)
    return rows, whole
