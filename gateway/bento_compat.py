"""Everything of BentoML, circus and uvicorn that is not their public interface: imports, replacements, observations.

No other module may touch it (`tests/gateway/test_bento_compat.py`), and both packages are pinned to a range in
`pyproject.toml`. When a new release moves something, the tests fail here and name it.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import uvicorn.config
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

__all__ = [
    "STATUS_LINE",
    "HttpToolsProtocol",
    "arbiter",
    "conflict_error",
    "ended_states",
    "given_host",
    "is_supervisor",
    "replace_arbiter",
    "replace_http_protocol",
    "sets_cors_headers",
    "tracer_provider",
    "without_timeout",
]


class _Untimed:
    """Takes the place of BentoML's time-out, whose timer keeps 5 kB of each request until it would have fired.

    Our own deadlines (`Dispatcher`, `BodyLimitMiddleware`, `GuardedProtocol`) bound every step of a request.
    """

    def __init__(self, app: ASGIApp, timeout: float) -> None:  # noqa: ARG002  # BentoML's signature
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._app(scope, receive, send)


def without_timeout() -> None:
    """Before a service is declared, replace BentoML's time-out of requests."""
    from bentoml._internal.server.http import traffic

    traffic.TimeoutMiddleware = _Untimed


def replace_http_protocol(protocol: type[HttpToolsProtocol]) -> None:
    """Before uvicorn is configured, make it use `protocol`, a class that can be imported by its name."""
    uvicorn.config.HTTP_PROTOCOLS["auto"] = f"{protocol.__module__}:{protocol.__qualname__}"


def sets_cors_headers() -> bool:
    """Whether BentoML's configuration (`http.cors` in the file that BENTOML_CONFIG names) has it answer for CORS."""
    from bentoml._internal.configuration.containers import BentoMLContainer

    return bool(BentoMLContainer.http.cors.enabled.get())


def arbiter() -> Any:
    """The class by which BentoML supervises its workers; importing it takes time that workers need not spend."""
    from bentoml._internal.utils import circus

    return circus.Arbiter


def replace_arbiter(replacement: type) -> None:
    """Before workers are started, make BentoML supervise them with `replacement`."""
    from bentoml._internal.utils import circus

    circus.Arbiter = replacement
    # In its containers BentoML leaves a dead worker to the orchestrator, which sees nothing while another worker lives.
    os.environ.pop("BENTOML_CONTAINERIZED", None)


def ended_states() -> tuple[str, ...]:
    """The states of a worker that circus will replace."""
    from circus.process import DEAD_OR_ZOMBIE, UNEXISTING

    return DEAD_OR_ZOMBIE, UNEXISTING


def conflict_error() -> type[Exception]:
    """What circus raises when it is asked for something while another such command is under way."""
    from circus.exc import ConflictError

    return ConflictError  # type: ignore[no-any-return]


def tracer_provider() -> Any:
    """BentoML's provider of tracers, one for each worker; it is made at the first call."""
    from bentoml._internal.configuration.containers import BentoMLContainer

    return BentoMLContainer.tracer_provider.get()


def given_host() -> str | None:
    """The host that `bentoml serve` was given by option or variable, which outweighs our setting."""
    for option, value in zip(sys.argv, [*sys.argv[1:], ""], strict=True):
        if option == "--host" or option.startswith("--host="):
            return value if option == "--host" else option.partition("=")[2]
    return os.environ.get("BENTOML_HOST")


def is_supervisor(pid: int) -> bool:
    """Whether the process `pid` is a `bentoml serve`, by its command line."""
    try:
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False
    return b"bentoml" in command and b"serve" in command
