"""The BentoML service: `bentoml serve gateway.service:Palisade`, or `palisade serve`."""

from __future__ import annotations

import logging
import os
import sys
import threading

import bentoml

from gateway import metrics, store, worker_metrics
from gateway.api import create_api
from gateway.auth import check_access
from gateway.errors import PalisadeError
from gateway.middleware import PrintablePathMiddleware
from gateway.registry import load_registry
from gateway.serving import CHECKED, abort_server, host_given_to_bentoml, log_to_stderr
from gateway.settings import load_settings

log = logging.getLogger(__name__)

try:
    settings = load_settings()
except PalisadeError as error:
    sys.exit(f"palisade: {error.detail}")
api = create_api(settings)


@bentoml.service(
    name="palisade",
    workers=settings.workers,
    # Our own deadlines come first; this one only ends what they could not.
    traffic={"timeout": settings.body_timeout + settings.request_timeout + 10.0},
    http={"host": settings.host, "port": settings.port},
    # BentoML's HTTP metrics carry the raw path as a label, which a scanner could fill without bound, and its access
    # log prints that path unescaped: both are replaced by ours (gateway.metrics, gateway.middleware).
    metrics={"enabled": False},
    logging={"access": {"enabled": False}},
)
@bentoml.asgi_app(api, path="/")
class Palisade:
    """Loads the bundles in the background: alive at once, ready after warm-up."""

    def __init__(self) -> None:
        log_to_stderr()
        worker_metrics.forget_dead_workers()
        threading.Thread(target=self._load, name="palisade-load", daemon=True).start()

    @bentoml.on_deployment  # type: ignore[untyped-decorator]
    @staticmethod
    def check() -> None:
        """Before any worker starts: settings and bundles must give something to serve, and not to everybody."""
        log_to_stderr()
        worker_metrics.make_folder()
        # Workers know by it whether they listen to more than this machine.
        os.environ["PALISADE_HOST"] = host_given_to_bentoml() or settings.host
        try:
            store.make_folder(settings.state_dir)
            if os.environ.get(CHECKED):
                return
            check_access(load_settings())
            load_registry(settings)
        except PalisadeError as error:
            sys.exit(f"palisade: {error.detail}")

    def _load(self) -> None:
        try:
            registry = load_registry(settings)
        except PalisadeError as error:
            abort_server(error.detail)
            return
        except Exception:
            log.exception("loading failed")
            abort_server("loading failed")
            return
        for pipeline in registry:
            metrics.announce(pipeline)
        api.state.registry = registry

    def __is_ready__(self) -> bool:
        return api.state.registry is not None

    @bentoml.on_shutdown  # type: ignore[untyped-decorator]
    def close(self) -> None:
        """Let images in work finish."""
        api.state.dispatcher.close()
        api.state.store.close()


# Around BentoML's own router too, which would answer in its own shape what it can't match.
Palisade.add_asgi_middleware(PrintablePathMiddleware)  # type: ignore[attr-defined]
