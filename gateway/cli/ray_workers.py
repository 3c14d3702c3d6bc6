"""Workers on Ray for `palisade scan`: each has a bundle of its own, and one of them that dies loses no image.

Only this process writes the report. Work is given out in pieces, and a piece counts when its rows have come back: a
piece whose worker died is given to another one, so that each image has one row, whatever is killed.
"""

from __future__ import annotations

import os
import socket
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from gateway.answers.certificate_request import Asked
from gateway.cli.archives import Failed, Shard
from gateway.cli.files import Image
from gateway.cli.scan import Row, failed, judged
from gateway.cli.shards import read_members
from gateway.cli.sources import Setup, Source, open_local
from gateway.core.cores import usable_cores
from gateway.errors import ConfigError, PalisadeError, RayUnavailable, WorkerLost
from gateway.pulling.packages import one_line, package

LOCAL = "local"
# Ray gives its own processes 15 seconds to start, which a busy machine can exceed.
_STARTS = 3
_STORE_BYTES = 100_000_000
# With its usage statistics off, Ray asks all the same at which cloud it is (169.254.169.254, metadata.google.internal),
# by plain HTTP, which goes to this proxy instead: a port of this machine where nobody listens.
_NOWHERE = {"http_proxy": "http://127.0.0.1:9", "no_proxy": "localhost,127.0.0.1"}
_CONNECT_SECONDS = 5.0
# Workers that a piece may cost: the first as a whole, then image by image.
_DEATHS = 2
_STARTS_PER_WORKER = 3
_BATCHES = 4


@dataclass(frozen=True)
class Job:
    """What a worker needs to know; `environment` holds this process's settings, `proxies` the user's."""

    models: list[str] | None
    model: str | None
    asked: Asked
    batch: int
    environment: dict[str, str]
    proxies: dict[str, str]
    folder: str


def make_job(models: list[str] | None, model: str | None, asked: Asked, batch: int) -> Job:
    """The job with this process's settings (`PALISADE_...`, but for its API key) and one thread a worker."""
    settings = {name: value for name, value in os.environ.items() if name.startswith("PALISADE_")}
    settings.pop("PALISADE_KEY", None)
    proxies = {name: os.environ[name] for name in _NOWHERE if name in os.environ}
    return Job(models, model, asked, batch, settings | {"PALISADE_THREADS": "1"}, proxies, str(Path.cwd()))


class Worker:
    """One actor: a process with a bundle's pipeline. Relative paths are those of the driver's folder."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._source: Source | None = None

    def open(self) -> Setup:
        """Open the bundle; raises what `open_local` raises."""
        os.environ.update(self._job.environment)
        if os.environ.items() >= _NOWHERE.items():
            _replace(self._job.proxies)
        with suppress(OSError):
            os.chdir(self._job.folder)
        self._source = open_local(self._job.models, self._job.model, self._job.asked)
        return self._source.setup

    def members(self, shards: Sequence[Shard]) -> list[list[Image]]:
        return [read_members(shard) for shard in shards]

    def judge(self, files: Sequence[Image]) -> list[Row]:
        assert self._source is not None  # noqa: S101 (a worker gets work when it is open)
        return [row for rows in judged(files, self._source, batch=self._job.batch, threads=1) for row in rows]


@dataclass(frozen=True)
class _Piece:
    items: Sequence[Any]
    deaths: int = 0


class Pool:
    """`count` workers, each replaced when it dies; `start` makes one, and `ray` is the package."""

    def __init__(self, ray: Any, start: Callable[[], Any], count: int) -> None:
        self._ray, self._make, self._count = ray, start, count
        self._starting: dict[Any, Any] = {}
        self._idle: list[Any] = []
        self._failed_starts = 0
        self._setup: Setup | None = None
        for _ in range(count):
            self._start()

    @property
    def setup(self) -> Setup:
        """What the workers' bundle states; waits for the first of them. Raises as `run` does."""
        while self._setup is None:
            self._wait({})
        return self._setup

    def run(self, method: str, items: Sequence[Any], size: int) -> Iterator[tuple[Sequence[Any], list[Any] | None]]:
        """What `method` returns for each piece of at most `size` items, in the order in which they are done.

        None stands for an item that took the life of every worker that got it. Raises what the method raises,
        `ConfigError` for workers with different bundles, and `RayUnavailable` where no worker comes up.
        """
        todo = deque(_Piece(items[first : first + size]) for first in range(0, len(items), size))
        working: dict[Any, tuple[Any, _Piece]] = {}
        while todo or working:
            while todo and self._idle:
                worker, piece = self._idle.pop(), todo.popleft()
                working[getattr(worker, method).remote(piece.items)] = worker, piece
            for reference in self._wait(working):
                worker, piece = working.pop(reference)
                try:
                    result = self._result(reference)
                except WorkerLost:
                    with suppress(Exception):
                        self._ray.kill(worker)
                    self._start()
                    again = _again(piece)
                    todo.extendleft(again)
                    if not again:
                        yield piece.items, None
                else:
                    self._idle.append(worker)
                    yield piece.items, result

    def _start(self) -> None:
        worker = self._make()
        self._starting[worker.open.remote()] = worker

    def _wait(self, working: dict[Any, Any]) -> list[Any]:
        """Wait until something is done; what it is of `working`. Workers that have opened their bundle become idle."""
        ready, _ = self._ray.wait([*working, *self._starting], num_returns=1)
        for reference in ready:
            if reference in self._starting:
                self._opened(reference)
        return [reference for reference in ready if reference in working]

    def _opened(self, reference: Any) -> None:
        worker = self._starting.pop(reference)
        try:
            setup = Setup(*self._result(reference))
        except WorkerLost as error:
            self._failed_starts += 1
            if self._failed_starts >= _STARTS_PER_WORKER * self._count:
                raise RayUnavailable(f"workers die before they have opened the bundle: {error.detail}") from None
            self._start()
            return
        self._failed_starts = 0
        if self._setup not in (None, setup):
            raise ConfigError(f"workers have different bundles or settings: {self._setup} and {setup}")
        self._setup = setup
        self._idle.append(worker)

    def _result(self, reference: Any) -> Any:
        """What a call returned or raised; `WorkerLost` where its process or machine is gone."""
        try:
            return self._ray.get(reference)
        except self._ray.exceptions.RayTaskError as error:
            cause = error.cause
            raise (cause if isinstance(cause, PalisadeError) else RayUnavailable(one_line(cause))) from None
        except self._ray.exceptions.RayError as error:
            raise WorkerLost(one_line(error)) from None


def _again(piece: _Piece) -> list[_Piece]:
    """A piece whose worker has died: whole the first time, then image by image, and then no more."""
    deaths = piece.deaths + 1
    if deaths < _DEATHS:
        return [_Piece(piece.items, deaths)]
    return [_Piece([item], deaths - 1) for item in piece.items] if len(piece.items) > 1 else []


class OnRay:
    """The workers as `gateway.cli.scan.Scanner`."""

    def __init__(self, pool: Pool, count: int, batch: int) -> None:
        self._pool, self._count, self._batch = pool, count, batch

    @property
    def setup(self) -> Setup:
        return self._pool.setup

    def members(self, shards: Sequence[Shard]) -> list[list[Image]]:
        """The images in each shard, whose headers the workers read."""
        found: dict[str, list[Image]] = {}
        for (shard,), result in self._pool.run("members", shards, 1):
            found[shard.name] = result[0] if result else [_lost(shard)]
        return [found[shard.name] for shard in shards]

    def rows(self, files: Sequence[Image]) -> Iterator[list[Row]]:
        """The rows of each piece, in the order in which they are done."""
        many = len(files) >= 2 * _BATCHES * self._batch * self._count
        for piece, result in self._pool.run("judge", files, self._batch * (_BATCHES if many else 1)):
            error = WorkerLost("workers died of it")
            yield [failed(file, error, self.setup) for file in piece] if result is None else result


def _lost(shard: Shard) -> Image:
    return Failed(shard.name, shard.size, shard.changed, WorkerLost(f"{shard.name}: workers died of it"))


@contextmanager
def on_ray(address: str, job: Job, workers: int | None) -> Iterator[OnRay]:
    """Workers (default: one for each core) on the cluster at `address`, or on a Ray of this machine alone (`local`).

    Nothing leaves the cluster: usage statistics are off (`gateway.NO_RAY_TELEMETRY`), a local Ray listens on loopback
    alone and has no dashboard. Raises `ConfigError` where Ray is not installed, and `RayUnavailable`.
    """
    if address == LOCAL:
        # Read when Ray is imported; despite its name it decides everywhere whether other machines can join.
        os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
    ray = package("ray", "scans on Ray", "ray")
    try:
        _connect(ray, address, workers)
        count = workers or max(1, int(ray.cluster_resources().get("CPU", 1)))
        actor = ray.remote(num_cpus=1)(Worker)
        yield OnRay(Pool(ray, lambda: actor.remote(job), count), count, job.batch)
    finally:
        ray.shutdown()


def _connect(ray: Any, address: str, workers: int | None) -> None:
    quiet = {"log_to_driver": False, "logging_level": "ERROR"}
    if address != LOCAL:
        _knock(address)
        try:
            ray.init(address=address, **quiet)
        except (Exception, SystemExit) as error:  # noqa: BLE001 (Ray raises many kinds)
            raise RayUnavailable(f"--ray {address}: {one_line(error)}") from None
        return
    local = {"num_cpus": workers or usable_cores(), "num_gpus": 0, "include_dashboard": False}
    for last in range(_STARTS):
        try:
            with _without_cloud():
                ray.init(address=LOCAL, object_store_memory=_STORE_BYTES, **local, **quiet)
            return
        except Exception as error:  # noqa: BLE001 (Ray raises many kinds, Exception itself among them)
            if last == _STARTS - 1:
                raise RayUnavailable(f"--ray {LOCAL}: {one_line(error)}") from None
            ray.shutdown()


@contextmanager
def _without_cloud() -> Iterator[None]:
    """Processes that are started meanwhile reach this machine alone by HTTP."""
    before = {name: os.environ[name] for name in _NOWHERE if name in os.environ}
    os.environ.update(_NOWHERE)
    try:
        yield
    finally:
        _replace(before)


def _replace(proxies: dict[str, str]) -> None:
    for name in _NOWHERE:
        os.environ.pop(name, None)
    os.environ.update(proxies)


def _knock(address: str) -> None:
    """Ray tries for long, and may end the process, where nothing listens at `HOST:PORT` or `ray://HOST:PORT`."""
    try:
        place = urlsplit(address if "://" in address else f"//{address}")
        if place.hostname is None or place.port is None:
            raise ValueError
    except ValueError:
        raise ConfigError(f"--ray {address}: expected local, HOST:PORT or ray://HOST:PORT") from None
    try:
        socket.create_connection((place.hostname, place.port), timeout=_CONNECT_SECONDS).close()
    except OSError as error:
        raise RayUnavailable(f"--ray {address}: {error.strerror or error}") from None
