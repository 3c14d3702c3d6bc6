"""Uvicorn's HTTP protocol with bounds on the head of a request and on shutdown; it refuses in our one shape of error.

Uvicorn itself closes connections that idle after an answer, but waits for ever for the first byte of a new connection
or for the rest of a head, and buffers a head of any size. At shutdown it cancels requests that
take too long, which BentoML's layers turn into an answer 500 and a stack trace. And it takes the body of a request that
offers another protocol (`Upgrade`) for the next request.
"""

from __future__ import annotations

import asyncio

import httptools

from gateway.bento_compat import STATUS_LINE, HttpToolsProtocol, replace_http_protocol
from gateway.errors import BadRequest, HeadTooLarge, Overloaded, PalisadeError, RequestTimeout
from gateway.http.problems import problem_response
from gateway.ids import new_id

MAX_HEAD_BYTES = 65_536


class GuardedProtocol(HttpToolsProtocol):
    """Closes a connection whose next head is incomplete `head_seconds` after it was begun, or grows too large.

    When the server stops, a request that is not answered within `drain_seconds` is refused with 503 `overloaded`.
    Offers of another protocol, which HTTP lets a server ignore, are ignored.
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
        self._unset_keepalive_if_required()
        try:
            self._feed(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):  # the latter of CONNECT
            msg = "Invalid HTTP request received."
            self.logger.warning(msg)
            self.send_400_response(msg)
            return
        if self._timer is not None and self._head_bytes > MAX_HEAD_BYTES:
            self._refuse(HeadTooLarge(f"a request's head may have {MAX_HEAD_BYTES} bytes"))

    def on_headers_complete(self) -> None:
        if not self._offers_protocol():
            self._stop_waiting()
            self._in_body = True
            super().on_headers_complete()

    def on_message_complete(self) -> None:
        if not self._offers_protocol():
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

    def _feed(self, data: bytes) -> None:
        """Parse `data`; at the end of a head that offers a protocol the parser stops, and is given one without."""
        rest = memoryview(data)
        while True:
            try:
                return self.parser.feed_data(rest)
            except httptools.HttpParserUpgrade as offer:
                if not self._offers_protocol():
                    raise
                rest = rest[offer.args[0] :]
                self.parser.feed_data(self._plain_head())

    def _offers_protocol(self) -> bool:
        return self.parser.should_upgrade() and self.parser.get_method() != b"CONNECT"

    def _plain_head(self) -> bytes:
        """The head that was parsed, without its offer."""
        first = b"%b %b HTTP/%b\r\n" % (self.parser.get_method(), self.url, self.parser.get_http_version().encode())
        lines = (name + b": " + value + b"\r\n" for name, value in self.headers if name != b"upgrade")
        return first + b"".join(lines) + b"\r\n"

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
