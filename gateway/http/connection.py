"""Uvicorn's HTTP protocol with bounds on the head of a request and on shutdown; it refuses in our one shape of error.

Uvicorn itself closes connections that idle after an answer, but waits for ever for the first byte of a new connection
or for the rest of a head, and buffers a head of any size. At shutdown it cancels requests that
take too long, which BentoML's layers turn into an answer 500 and a stack trace.
"""

from __future__ import annotations

import asyncio

from gateway.bento_compat import STATUS_LINE, HttpToolsProtocol, replace_http_protocol
from gateway.errors import BadRequest, HeadTooLarge, Overloaded, PalisadeError, RequestTimeout
from gateway.http.problems import problem_response
from gateway.ids import new_id

MAX_HEAD_BYTES = 65_536


class GuardedProtocol(HttpToolsProtocol):
    """Closes a connection whose next head is incomplete `head_seconds` after it was begun, or grows too large.

    When the server stops, a request that is not answered within `drain_seconds` is refused with 503 `overloaded`.
    """

    head_seconds = 20.0
    drain_seconds = 25.0

    _timer: asyncio.TimerHandle | None = None
    _head_bytes = 0
    _in_body = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._await_head()

    def data_received(self, data: bytes) -> None:
        if self._timer is None and not self._in_body:
            self._await_head()
        self._head_bytes += len(data)
        super().data_received(data)
        if self._timer is not None and self._head_bytes > MAX_HEAD_BYTES:
            self._refuse(HeadTooLarge(f"a request's head may have {MAX_HEAD_BYTES} bytes"))

    def on_headers_complete(self) -> None:
        self._stop_waiting()
        self._in_body = True
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        self._in_body = False
        super().on_message_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting()
        super().connection_lost(exc)

    def shutdown(self) -> None:
        super().shutdown()
        if not self.transport.is_closing():
            self.loop.call_later(self.drain_seconds, self._end)

    def send_400_response(self, msg: str) -> None:
        self._refuse(BadRequest(msg))

    def _await_head(self) -> None:
        self._head_bytes = 0
        self._timer = self.loop.call_later(self.head_seconds, self._too_slow)

    def _stop_waiting(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _too_slow(self) -> None:
        if self._head_bytes:
            self._refuse(RequestTimeout(f"the head of the request did not arrive within {self.head_seconds:g} s"))
        else:
            self.transport.close()

    def _end(self) -> None:
        if self.cycle.response_started:
            self.transport.abort()
        else:
            self._refuse(Overloaded("the gateway is stopping", headers={"Retry-After": "1"}))

    def _refuse(self, error: PalisadeError) -> None:
        self._stop_waiting()
        if self.transport.is_closing():
            return
        request_id = new_id()
        response = problem_response(error, {"path": "", "state": {"request_id": request_id}})
        headers = [*response.raw_headers, (b"x-request-id", request_id.encode()), (b"connection", b"close")]
        lines = b"".join(name + b": " + value + b"\r\n" for name, value in headers)
        self.transport.write(STATUS_LINE[response.status_code] + lines + b"\r\n" + bytes(response.body))
        self.transport.close()


def guard_connections(*, head_seconds: float, drain_seconds: float) -> None:
    """Before uvicorn is configured: make it use this protocol."""
    GuardedProtocol.head_seconds = head_seconds
    GuardedProtocol.drain_seconds = drain_seconds
    replace_http_protocol(GuardedProtocol)
