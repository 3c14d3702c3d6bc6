"""What this gateway tells other replicas, and hears of them, twice a second (`POLL_SECONDS`).

Limits: each worker grants from the buckets of its own server and reports what it granted; what the replicas granted
together becomes the debt of its own buckets. So N replicas hold one limit, but for what N - 1 of them grant until they
have heard of it, and all of that is paid back by waiting. Wanted versions: a change is written to the database first,
and every replica follows it. While the database does not answer each replica goes on with what it knows; grants that
could not be reported are reported later, so that limits hold in the long run.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable

from pydantic import TypeAdapter, ValidationError

from gateway.errors import AuditUnavailable, Conflict, StoreUnavailable
from gateway.replicas.store import ReplicaStore
from gateway.settings import Settings
from gateway.telemetry import metrics
from gateway.versions.registry import Versions
from gateway.versions.rollout import Rollout
from gateway.versions.shared_state import POLL_SECONDS, Store

log = logging.getLogger(__name__)

_MODELS = "models/"
_HEARD = "replicas"
_VERSIONS = TypeAdapter(Versions)
# Buckets that wait to be reported; beyond it, while the database is away, what others took is forgotten.
_MOST_BUCKETS = 100_000


class Exchange:
    """One worker's part of it; `start` and `close` are its thread's."""

    def __init__(self, url: str, local: Store) -> None:
        """`ConfigError` for a URL that cannot be used."""
        self._shared = ReplicaStore(url)
        self._local = local
        self._rollout: Rollout | None = None
        self._unreported: Counter[str] = Counter()
        self._prepared = False
        self._failing = False
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def publish(self, name: str, versions: Versions) -> None:
        """Tell the replicas which versions of a model are wanted; raises `Conflict` and `StoreUnavailable`."""
        try:
            _, heard = self._heard(name)
            version = self._shared.put(_MODELS + name, _VERSIONS.dump_python(versions, mode="json"), expected=heard)
        except AuditUnavailable:
            raise StoreUnavailable(
                "the database that replicas share does not answer: nothing was changed", headers={"Retry-After": "5"}
            ) from None
        self._hear({name: version})

    def start(self, rollout: Rollout) -> None:
        """Hear once what is wanted, before anything is loaded, and note what is granted from now on."""
        self._rollout = rollout
        self._local.note_spent()
        self._attempt(self._follow)
        self._thread = threading.Thread(target=self._run, name="palisade-replicas", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Report what was granted, if the database answers at once."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(2 * POLL_SECONDS)
            if not self._thread.is_alive():
                self._attempt(self._report)
        self._shared.close()

    def cycle(self) -> None:
        """Report, and hear; raises nothing that a later call may not meet again."""
        self._attempt(self._report)
        self._attempt(self._follow)

    def _run(self) -> None:
        while not self._stop.wait(POLL_SECONDS):
            self.cycle()

    def _attempt(self, job: Callable[[], None]) -> None:
        try:
            if not self._prepared:
                self._shared.prepare()
                self._prepared = True
            job()
        except AuditUnavailable as error:
            metrics.store_failures_total.labels("replicas").inc()
            if not self._failing:
                log.warning(
                    "replicas: %s does not answer, each gateway holds its own limits: %s",
                    self._shared.name,
                    " ".join(str(error.__cause__).split())[:200],
                )
            self._failing = True
        except (Conflict, StoreUnavailable):
            pass  # another worker did it, or the local store has logged it; the next cycle looks again
        except Exception:
            metrics.store_failures_total.labels("replicas").inc()
            log.exception("replicas: an exchange failed")
        else:
            if self._failing:
                log.info("replicas: %s answers again", self._shared.name)
            self._failing = False

    def _report(self) -> None:
        for name, seconds in self._local.spent().items():
            if name in self._unreported or len(self._unreported) < _MOST_BUCKETS:
                self._unreported[name] += seconds  # type: ignore[assignment]
        if not self._unreported:
            return
        now = time.monotonic()
        owed = self._shared.spend(self._unreported)
        self._unreported.clear()
        self._local.owe(owed, now)

    def _follow(self) -> None:
        assert self._rollout is not None  # noqa: S101  # `start` has set it
        found = {
            name.removeprefix(_MODELS): entry
            for name, entry in self._shared.entries().items()
            if name.startswith(_MODELS)
        }
        heard, _ = self._local.get(_HEARD)
        news = {name: entry for name, entry in found.items() if entry[1] > (heard or {}).get(name, 0)}
        if not news:
            return
        wanted: dict[str, Versions] = {}
        for name, (value, _) in news.items():
            try:
                wanted[name] = _VERSIONS.validate_python(value)
            except ValidationError as error:
                log.error("replicas: the wanted versions of %s are ignored: %s", name[:80], error.errors()[0]["msg"])  # noqa: TRY400
        self._rollout.adopt(wanted)
        self._hear({name: version for name, (_, version) in news.items()})

    def _heard(self, name: str) -> tuple[dict[str, int], int]:
        value, _ = self._local.get(_HEARD)
        heard: dict[str, int] = value or {}
        return heard, heard.get(name, 0)

    def _hear(self, versions: dict[str, int]) -> None:
        while True:
            value, at = self._local.get(_HEARD)
            try:
                self._local.put(_HEARD, (value or {}) | versions, expected=at)
            except Conflict:
                continue
            return


def check_replicas(settings: Settings) -> None:
    """Before workers start: `ConfigError` for a URL that cannot be used; a database that is away is told of later."""
    if settings.replicas_url is None:
        return
    store = ReplicaStore(settings.replicas_url)
    try:
        store.prepare()
    except AuditUnavailable as error:
        log.warning("replicas: %s does not answer: %s", store.name, " ".join(str(error.__cause__).split())[:200])
    finally:
        store.close()
