"""Which versions all workers of a server are to run: one state in the shared store, changed by one worker on request.

That worker loads and warms up what a change needs, and writes the change only if it can be served; the others find it
within `POLL_SECONDS`, load it and switch. A worker that restarts later starts with it.
"""

from __future__ import annotations

import gc
import logging
import os
import threading
import time
import weakref
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace

from pydantic import TypeAdapter, ValidationError

from gateway.core.manifest import Manifest
from gateway.core.pipeline import Pipeline
from gateway.errors import BundleError, ConfigError, Conflict, PalisadeError, UnknownVersion
from gateway.settings import Settings
from gateway.telemetry import metrics
from gateway.versions.catalogue import Catalogue
from gateway.versions.registry import Loaded, Registry, Versions, load_wanted, warmed
from gateway.versions.shared_state import FILE, Store

log = logging.getLogger(__name__)

_STATE = "models"
_WORKERS = "workers"
_COMPLETE = "complete"
# Seconds until a change that this worker could not load is tried again.
_RETRY_SECONDS = 10.0
_WANTED = TypeAdapter(dict[str, Versions])
Publish = Callable[[str, Versions], None]


@dataclass(frozen=True)
class Worker:
    """What a worker process reports: the generation of the state that it runs, and why it does not run a later one."""

    pid: int
    ready: bool = False
    generation: int = 0
    problem: str | None = None


class Rollout:
    """Makes this worker's registry follow the shared state, and changes that state; used from several threads."""

    def __init__(self, settings: Settings, store: Store, publish: Publish | None = None) -> None:
        """`publish` tells other replicas of a change before it holds here; it raises `Conflict` to refuse it."""
        self._publish = publish
        self.registry = Registry(default=settings.default_model)
        self.catalogue = Catalogue(settings.models, settings.demands)
        self._settings = settings
        self._store = store
        self._lock = threading.Lock()
        self._me = Worker(os.getpid())
        self._retry_at = 0.0
        self._retired: list[weakref.ref[Pipeline]] = []
        self._all_ready = False

    def start(self) -> None:
        """Load what is wanted (see `load_wanted`) and agree on it with the other workers.

        Raises `ConfigError` when nothing can be served, and `StoreUnavailable`.
        """
        self._report(self._me)
        loaded: Loaded = {}
        while True:
            wanted, generation = self.wanted()
            chosen = load_wanted(self._settings, self.catalogue, wanted, loaded)
            try:
                if chosen != wanted:
                    generation = self._write(chosen, generation)
            except Conflict:
                continue  # another worker wrote first: agree on its state, with what is loaded already
            self._run(chosen, generation, loaded)
            return

    def follow(self) -> None:
        """Load and run what another worker changed; called every `POLL_SECONDS`. Raises `StoreUnavailable`."""
        self.all_ready()
        with self._lock:
            wanted, generation = self.wanted()
            if generation != self._me.generation and time.monotonic() >= self._retry_at:
                try:
                    loaded = self._load(wanted)
                except PalisadeError as error:
                    # The old state keeps answering; without a pause each poll would load the broken bundle again.
                    self._retry_at = time.monotonic() + _RETRY_SECONDS
                    log.error("this worker cannot load what the others serve: %s", error.detail)  # noqa: TRY400
                    self._report(replace(self._me, problem=error.detail))
                else:
                    self._run(wanted, generation, loaded)
        self._collect()

    def load(self, name: str, version: str) -> int:
        """Keep a version loaded, beside the active one, until `unload`.

        This method and the following ones return the generation from which on the change holds. They raise
        `UnknownModel`, `UnknownVersion`, `BundleError` for a bundle that is broken, `Conflict`, and `StoreUnavailable`;
        then nothing has changed.
        """
        return self._change(
            name,
            lambda now: now if version in now.pinned else replace(now, pinned=(*now.pinned, version)),
        )

    def activate(self, name: str, version: str) -> int:
        """Make a version the active one. The previous one is unloaded unless it is pinned, and shadow mode ends."""
        return self._change(name, lambda now: now if version == now.active else _activated(now, version))

    def rollback(self, name: str) -> int:
        """Make the previously active version active again."""

        def edit(now: Versions) -> Versions:
            if now.previous is None:
                raise Conflict(f"{name}: no version was active before {now.active}")
            return _activated(now, now.previous)

        return self._change(name, edit)

    def shadow(self, name: str, version: str | None) -> int:
        """Score a version on the images that the active one answers; None ends this."""

        def edit(now: Versions) -> Versions:
            if version is None:
                return replace(now, shadow=None)
            active = self.registry.served(name).active
            if active is None or version == now.active:
                raise Conflict(f"{name} {version[:80]}: only a version other than the active one can be its shadow")
            if self._manifest(name, version).input != active.bundle.manifest.input:
                raise Conflict(f"{name} {version}: takes images of another size than the active version")
            return replace(now, shadow=version)

        return self._change(name, edit)

    def unload(self, name: str, version: str) -> int:
        """End what `load` began: the version is no longer kept loaded."""

        def edit(now: Versions) -> Versions:
            if version in (now.active, now.shadow):
                raise Conflict(f"{name} {version} is {'active' if version == now.active else 'the shadow'}")
            if version not in now.pinned:
                raise UnknownVersion(f"{name} {version[:80]!r} is not loaded")
            return replace(now, pinned=tuple(pinned for pinned in now.pinned if pinned != version))

        return self._change(name, edit)

    def adopt(self, versions: Mapping[str, Versions]) -> None:
        """Want what another replica wants, of the models that are here; workers load it as they `follow`.

        Raises `StoreUnavailable`, and `Conflict` where another worker wrote meanwhile.
        """
        wanted, generation = self.wanted()
        here = {found.name for found in self.catalogue.look()[0]}
        edited = wanted | {name: each for name, each in versions.items() if name in here}
        if edited != wanted:
            self._write(edited, generation)

    def wanted(self) -> tuple[dict[str, Versions], int]:
        """The shared state, by model, and its generation. Raises `StoreUnavailable`."""
        return read_wanted(self._store)

    def workers(self) -> list[Worker]:
        """The worker processes that are alive. Raises `StoreUnavailable`."""
        return living_workers(self._store)

    def converged(self, generation: int) -> bool:
        """Whether every worker runs the state of `generation` or a later one."""
        return sum(worker.generation >= generation for worker in self.workers()) >= self._settings.workers

    def all_ready(self) -> bool:
        """Whether this worker is ready, and all workers of the server were ready at one moment (`complete`).

        Raises `StoreUnavailable`.
        """
        # Read from the store, not asked of the workers: the first probe may reach this worker after another has died.
        if not self._all_ready and self._me.ready:
            self._all_ready = _is_complete(self._store)
        return self._all_ready

    def served_before(self) -> bool:
        """Whether any worker of this server was ever ready, be it alive or not."""
        rows, _ = self._store.get(_WORKERS)
        return any(row["ready"] for row in (rows or {}).values())

    def others_serve(self) -> bool:
        """Whether another worker is ready."""
        return any(worker.ready for worker in self.workers() if worker.pid != self._me.pid)

    def _change(self, name: str, edit: Callable[[Versions], Versions]) -> int:
        with self._lock:
            wanted, generation = self.wanted()
            if name not in wanted:
                self.catalogue.versions(name)  # raises `UnknownModel`
            now = wanted.get(name, Versions())
            edited = edit(now)
            if edited != now:
                wanted[name] = edited
                # Loaded before it is written: a version that cannot be served never becomes the shared state.
                loaded = self._load(wanted)
                if self._publish is not None:
                    self._publish(name, edited)
                generation = self._write(wanted, generation)
                log.info("%s: active %s, shadow %s, pinned %s", name, edited.active, edited.shadow, list(edited.pinned))
                self._run(wanted, generation, loaded)
            return generation

    def _manifest(self, name: str, version: str) -> Manifest:
        loaded = self.registry.loaded.get((name, version))
        return loaded.bundle.manifest if loaded is not None else self.catalogue.find(name, version).manifest

    def _load(self, wanted: Mapping[str, Versions]) -> Loaded:
        """Load what is wanted and not loaded yet."""
        have = self.registry.loaded
        missing = [(name, v) for name, versions in wanted.items() for v in versions.loaded if (name, v) not in have]
        try:
            return {
                (name, version): warmed(self.catalogue.find(name, version).bundle, self._settings)
                for name, version in missing
            }
        except ConfigError as error:  # a caller's change asked for a bundle that the settings do not fit
            raise BundleError(error.detail) from None

    def _run(self, wanted: Mapping[str, Versions], generation: int, loaded: Loaded) -> None:
        """Switch to a state of which everything is loaded, and report that to the other workers."""
        before = self.registry.loaded
        for name, versions in wanted.items():
            was = self.registry.served(name).active
            self.registry.put(name, versions, loaded)
            active = self.registry.served(name).active
            if active is not was:
                if was is not None:
                    metrics.withdraw(was)
                if active is not None:
                    metrics.announce(active)
                    log.info("serving %s %s on %s", name, active.bundle.version, active.engine.provider)
        after = self.registry.loaded
        self._retired += [weakref.ref(pipeline) for key, pipeline in before.items() if key not in after]
        self._report(Worker(self._me.pid, ready=True, generation=generation))
        metrics.ready.set(1)

    def _collect(self) -> None:
        """Free replaced pipelines that no request uses any more."""
        if self._retired:
            gc.collect()  # they are in reference cycles, which Python itself would keep for long
            self._retired = [reference for reference in self._retired if reference() is not None]

    def _write(self, wanted: Mapping[str, Versions], generation: int) -> int:
        return self._store.put(_STATE, _WANTED.dump_python(dict(wanted), mode="json"), expected=generation)

    def _report(self, me: Worker) -> None:
        while True:  # until no other worker writes between the read and the write
            rows, version = self._store.get(_WORKERS)
            living = {pid: row for pid, row in (rows or {}).items() if _lives(row["pid"])}
            try:
                self._store.put(_WORKERS, {**living, str(me.pid): asdict(me)}, expected=version)
            except Conflict:
                continue
            self._me = me
            if me.ready and sum(worker.ready for worker in self.workers()) >= self._settings.workers:
                complete(self._store)
            return


def read_wanted(store: Store) -> tuple[dict[str, Versions], int]:
    """Which versions workers are to run, by model, and the generation of that state. Raises `StoreUnavailable`."""
    value, generation = store.get(_STATE)
    try:
        return _WANTED.validate_python(value or {}), generation
    except ValidationError as error:
        log.error("the stored state of models is ignored, since it is invalid: %s", error.errors()[0]["msg"])  # noqa: TRY400
        return {}, generation


def stored_wanted(settings: Settings) -> dict[str, Versions]:
    """The versions that the state folder of an earlier server wants; raises `StoreUnavailable`."""
    if settings.state_dir is None or not (settings.state_dir / FILE).is_file():
        return {}
    store = Store(settings.state_dir)
    try:
        return read_wanted(store)[0]
    finally:
        store.close()


def living_workers(store: Store) -> list[Worker]:
    """The worker processes of the server that are alive. Raises `StoreUnavailable`."""
    rows, _ = store.get(_WORKERS)
    return [Worker(**row) for row in (rows or {}).values() if _lives(row["pid"])]


def complete(store: Store) -> None:
    """Record that every worker that accepts connections can answer: the server is ready while a worker is alive.

    This holds once all workers were ready at one moment. It also holds when a worker is replaced while another is
    ready, since replacements load before they accept connections. Raises `StoreUnavailable`.
    """
    if not _is_complete(store):
        store.put(_COMPLETE, {"complete": True})


def _is_complete(store: Store) -> bool:
    value, _ = store.get(_COMPLETE)
    return bool(value and value["complete"])


def forget_workers(store: Store) -> None:
    """Before workers start, delete what a state folder reports of the last server's. Raises `StoreUnavailable`."""
    store.put(_WORKERS, {})
    store.put(_COMPLETE, {"complete": False})


def _activated(now: Versions, version: str) -> Versions:
    pinned = tuple(pinned for pinned in now.pinned if pinned != version)
    return Versions(active=version, previous=now.active, pinned=pinned)


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
