"""ASGI layers around every route: request ids, limits on bodies, and no exception without an answer."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable

from starlette.datastructures import Headers, MutableHeaders
from starlette.status import HTTP_503_SERVICE_UNAVAILABLE
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gateway.errors import NOT_READY, EngineError, ImageTooLarge, NotReady, PalisadeError, RequestTimeout
from gateway.http.problems import PREDICT_ROUTES, problem_response, uncounted_response
from gateway.ids import new_id

log = logging.getLogger("gateway.access")

PROBES = ("/livez", "/readyz", "/healthz")

# Seconds for which a refused upload is still read and dropped, so that the client receives the answer.
LINGER_SECONDS = 5.0


class RequestMiddleware:
    """Gives each request an id (`X-Request-Id`), a line in the log, and a problem+json answer whatever happens."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = new_id()
        scope.setdefault("state", {})["request_id"] = request_id
        start = time.perf_counter()
        status = 0

        async def tagged(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["X-Request-Id"] = request_id
            await send(message)

        try:
            await self._app(scope, receive, tagged)
        except Exception:
            log.exception("request %s failed", request_id)
            if status:
                raise
            await problem_response(EngineError("unexpected failure; the log has the reason"), scope)(
                scope, receive, tagged
            )
        finally:
            milliseconds = (time.perf_counter() - start) * 1e3
            caller = scope["state"].get("caller")
            fields = {
                "request_id": request_id,
                "method": scope["method"],
                "path": scope["path"],
                "status": status,
                "ms": round(milliseconds, 1),
            }
            # %r, since a path is the client's text and must not forge lines of the log.
            log.info("%s %s %r %d %s ms", *fields.values(), extra=fields | {"key": caller and caller.key_id})


class PrintablePathMiddleware:
    """Replaces control characters in the path, which no route has and which no router's pattern matches."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and not scope["path"].isprintable():
            path = "".join(letter if letter.isprintable() else "\ufffd" for letter in scope["path"])
            scope = {**scope, "path": path}
        await self._app(scope, receive, send)


class ProbeMiddleware:
    """Answers `not_ready` in our shape of error where BentoML's own probes answer plain text."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] not in PROBES:
            await self._app(scope, receive, send)
            return
        status = 0

        async def translated(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            if status != HTTP_503_SERVICE_UNAVAILABLE:
                await send(message)
            elif message["type"] == "http.response.body" and not message.get("more_body", False):
                error = NotReady(NOT_READY, headers={"Retry-After": "1"})
                await uncounted_response(error, scope)(scope, receive, send)

        await self._app(scope, receive, translated)


class BodyLimitMiddleware:
    """Stops reading a body at `max_bytes` (413) or after `timeout` seconds (408); nothing larger is ever buffered.

    The rest of a refused upload is read and dropped for a while before the connection closes: closing it at once would
    reset the connection, and the client would see that in place of the answer.
    """

    def __init__(
        self, app: ASGIApp, *, max_bytes: int, timeout: float, refusal: Callable[[], PalisadeError | None]
    ) -> None:
        """`refusal` returns why no image can be taken now; it is asked first, so that a refusal costs little."""
        self._app = app
        self._max_bytes = max_bytes
        self._timeout = timeout
        self._refusal = refusal

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        body = _Body(scope, receive, self._max_bytes, self._timeout)
        reply = body.lingering(send)
        error = body.declared_too_large()
        if error is None and PREDICT_ROUTES.fullmatch(scope["path"]):
            error = self._refusal()
            if error is not None:
                await body.drain()
        if error is None:
            await self._app(scope, body.receive, reply)
        else:
            await problem_response(error, scope)(scope, receive, reply)


class _Body:
    def __init__(self, scope: Scope, receive: Receive, max_bytes: int, timeout: float) -> None:
        headers = Headers(scope=scope)
        self._declared = headers.get("content-length", "")
        self._complete = not self._declared.strip("0") and "transfer-encoding" not in headers
        self._receive = receive
        self._max_bytes = max_bytes
        self._deadline = time.monotonic() + timeout
        self._timeout = timeout
        self._received = 0

    def declared_too_large(self) -> PalisadeError | None:
        if self._declared.isdecimal() and int(self._declared[:20]) > self._max_bytes:
            return self._too_large(self._declared[:20])
        return None

    async def receive(self) -> Message:
        if self._complete:
            return await self._receive()
        try:
            async with asyncio.timeout(max(0.0, self._deadline - time.monotonic())):
                message = await self._receive()
        except TimeoutError:
            raise RequestTimeout(f"the body did not arrive within {self._timeout:g} s") from None
        self._note(message)
        if self._received > self._max_bytes:
            raise self._too_large(f"more than {self._max_bytes}")
        return message

    def lingering(self, send: Send) -> Send:
        async def reply(message: Message) -> None:
            if self._complete:
                await send(message)
            elif message["type"] == "http.response.start":
                MutableHeaders(scope=message)["Connection"] = "close"
                await send(message)
            elif message["type"] == "http.response.body" and not message.get("more_body", False):
                await send({**message, "more_body": True})
                await self.drain()
                await send({"type": "http.response.body", "body": b""})
            else:
                await send(message)

        return reply

    async def drain(self) -> None:
        """Read the rest and drop it, for a while."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LINGER_SECONDS):
                while not self._complete:
                    self._note(await self._receive())

    def _note(self, message: Message) -> None:
        if message["type"] == "http.request":
            self._received += len(message.get("body", b""))
            self._complete = not message.get("more_body", False)
        else:
            self._complete = True

    def _too_large(self, what: str) -> ImageTooLarge:
        return ImageTooLarge(f"the body has {what} bytes, at most {self._max_bytes} are accepted")
