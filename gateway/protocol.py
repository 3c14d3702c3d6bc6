"""The HTTP protocol of uvicorn with bounds on a request's head, and its refusals in our one shape of error.

Uvicorn itself closes connections that idle after an answer, but waits for ever for the first byte of a new connection
or for the rest of a head, and buffers a head of any size.
"""

from __future__ import annotations

import asyncio

import uvicorn.config
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from gateway.errors import BadRequest, HeadTooLarge, PalisadeError, RequestTimeout
from gateway.ids import new_id
from gateway.problems import problem_response

MAX_HEAD_BYTES = 65_536


class GuardedProtocol(HttpToolsProtocol):
    """Closes a connection whose next head is not there `head_seconds` after it was begun, or grows too large."""

    head_seconds = 20.0

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

    def _refuse(self, error: PalisadeError) -> None:
        self._stop_waiting()
        if self.transport.is_closing():
            return
        response = problem_response(error, {"path": "", "state": {"request_id": new_id()}})
        headers = [*response.raw_headers, (b"connection", b"close")]
        lines = b"".join(name + b": " + value + b"\r\n" for name, value in headers)
        self.transport.write(STATUS_LINE[response.status_code] + lines + b"\r\n" + bytes(response.body))
        self.transport.close()


def guard_heads(seconds: float) -> None:
    """Before uvicorn is configured: make it use this protocol."""
    GuardedProtocol.head_seconds = seconds
    uvicorn.config.HTTP_PROTOCOLS["auto"] = f"{__name__}:{GuardedProtocol.__name__}"
