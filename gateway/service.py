"""The BentoML service: `bentoml serve gateway.service:Palisade`, or `palisade serve`."""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import sys
import threading
import time
from collections.abc import Callable

import bentoml
from threadpoolctl import threadpool_limits

from gateway.access.auth import check_access
from gateway.app import create_api, layers
from gateway.audit.trail import check_audit
from gateway.bento_compat import given_host, sets_cors_headers, without_timeout
from gateway.errors import PalisadeError, StoreUnavailable
from gateway.front_door import FrontDoor
from gateway.http.connection import guard_connections
from gateway.http.middleware import PrintablePathMiddleware, ProbeMiddleware
from gateway.inference.shadow import Shadow
from gateway.process import home
from gateway.process.serving import CHECKED, abort_server, log_to_stderr, use_one_gpu
from gateway.pulling.cache import fetch_sources
from gateway.replicas.exchange import Exchange, check_replicas
from gateway.settings import load_settings
from gateway.telemetry import metrics, worker_metrics
from gateway.telemetry.tracing import check_provider, tracing_options
from gateway.versions import shared_state as store
from gateway.versions.registry import load_registry, opened
from gateway.versions.rollout import Rollout, forget_workers, read_wanted

log = logging.getLogger(__name__)


_RESTART_SECONDS = 5.0
# Seconds that decoding and batch threads wait for the event loop to release the interpreter; 5 ms by default.
_SWITCH_SECONDS = 0.0005
_STORE_SECONDS = 10.0

try:
    settings = load_settings()
    tracing = tracing_options(settings)
except PalisadeError as error:
    sys.exit(f"palisade: {error.detail}")
api = create_api(settings)
without_timeout()
guard_connections(head_seconds=settings.body_timeout, drain_seconds=settings.drain_timeout)


@bentoml.service(
    name="palisade",
    workers=settings.workers,
    http={"host": settings.host, "port": settings.port},
    # BentoML's HTTP metrics carry the raw path as a label, which a scanner could fill without bound, and its access
    # log prints that path unescaped: both are replaced by ours (gateway.telemetry.metrics, gateway.http.middleware).
    metrics={"enabled": False},
    logging={"access": {"enabled": False}},
    tracing=tracing,
)
@bentoml.asgi_app(api, path="/")
class Palisade:
    """Loads the bundles in the background: alive at once, ready after warm-up."""

    def __init__(self) -> None:
        log_to_stderr(settings.log_format)
        sys.setswitchinterval(_SWITCH_SECONDS)
        worker_metrics.forget_dead_workers()
        use_one_gpu(bentoml.server_context.worker_index)
        self._exchange = Exchange(settings.replicas_url, api.state.store) if settings.replicas_url else None
        publish = None if self._exchange is None else self._exchange.publish
        self._rollout = Rollout(settings, api.state.store, publish)
        api.state.ready = self.__is_ready__
        self._closing = threading.Event()
        if _now(self._rollout.served_before):
            # This worker replaces one that died: it takes no connection before it can answer.
            self._load()
        threading.Thread(target=self._keep_up, name="palisade-models", daemon=True).start()

    @bentoml.on_deployment  # type: ignore[untyped-decorator]
    @staticmethod
    def check() -> None:
        """Before any worker starts, check that there is a bundle to serve and that strangers are kept out."""
        from gateway.process.supervisor import watch_closely  # needs what workers need not import

        log_to_stderr(settings.log_format)
        watch_closely()
        worker_metrics.make_folder()
        home.remove_at_end()
        # From it, workers know whether they listen to more than this machine.
        os.environ["PALISADE_HOST"] = given_host() or settings.host
        try:
            store.make_folder(settings.state_dir)
            now = load_settings()
            shared = store.Store(now.state_dir)
            forget_workers(shared)
            if not os.environ.get(CHECKED):
                check_access(now)
                fetch_sources(now)
                load_registry(now, read_wanted(shared)[0], load=opened)
                check_audit(now)
                check_replicas(now)
            shared.close()
            check_provider()
        except PalisadeError as error:
            sys.exit(f"palisade: {error.detail}")

    def _keep_up(self) -> None:
        """Load, then follow the changes that other workers make."""
        if api.state.registry is None:
            self._load()
        while not self._closing.wait(store.POLL_SECONDS):
            with contextlib.suppress(StoreUnavailable):  # which the store has logged and counted
                self._rollout.follow()

    def _load(self) -> None:
        # Imported objects are never freed: collections, which free replaced models, need not visit them.
        gc.collect()
        gc.freeze()
        # The threads of numpy's BLAS wait for each other by spinning, which costs more than its small products.
        # A thread of low priority that has the interpreter gives it back to one that answers after half a millisecond.
        sys.setswitchinterval(5e-4)
        threadpool_limits(1, user_api="blas")
        try:
            if self._exchange is not None:
                self._exchange.start(self._rollout)
            _patiently(self._rollout.start)
            api.state.audit.start()
            api.state.campaigns.start()
        except PalisadeError as error:
            self._give_up(error.detail)
            return
        except Exception:
            log.exception("loading failed")
            self._give_up("loading failed")
            return
        api.state.dispatcher.shadow = Shadow(self._rollout.registry, api.state.dispatcher.batcher)
        api.state.rollout = self._rollout
        api.state.registry = self._rollout.registry

    def _give_up(self, reason: str) -> None:
        """A server that cannot start ends; a worker that cannot be replaced is tried again, while others serve."""
        if _now(self._rollout.others_serve):
            log.critical("a worker cannot start, the others keep serving: %s", reason)
            time.sleep(_RESTART_SECONDS)
            os._exit(1)
        abort_server(reason)

    def __is_ready__(self) -> bool:
        registry = api.state.registry
        return registry is not None and registry.problem is None and _now(self._rollout.all_ready)

    @bentoml.on_shutdown  # type: ignore[untyped-decorator]
    def close(self) -> None:
        """Let images that are being processed finish."""
        self._closing.set()
        metrics.ready.set(0)
        api.state.dispatcher.close()
        api.state.campaigns.close()
        api.state.audit.close()
        if self._exchange is not None:
            self._exchange.close()
        api.state.store.close()


def _patiently(job: Callable[[], None]) -> None:
    """Retry while the shared store does not answer, as when many workers start on a slow disk."""
    deadline = time.monotonic() + _STORE_SECONDS
    while True:
        try:
            return job()
        except StoreUnavailable:
            if time.monotonic() > deadline:
                raise
            time.sleep(store.POLL_SECONDS)


def _now(question: Callable[[], bool]) -> bool:
    """The answer of the shared store; False when it does not answer, which it has logged and counted."""
    try:
        return question()
    except StoreUnavailable:
        return False


# These wrap BentoML's own router too, which would answer unmatched paths in its own shape.
Palisade.add_asgi_middleware(PrintablePathMiddleware)  # type: ignore[attr-defined]
Palisade.add_asgi_middleware(ProbeMiddleware)  # type: ignore[attr-defined]
if not sets_cors_headers():  # which it does in a layer of its own, behind these
    Palisade.add_asgi_middleware(FrontDoor, api=api, layers=layers(api))  # type: ignore[attr-defined]
