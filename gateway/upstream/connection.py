"""HTTP to another server, with bounds on time and size: what goes wrong is one of three errors with a stable code.

On the standard library's client: a request of five small images takes it two fifths of the processor time of `httpx`,
and one deadline bounds all that is read.
"""

from __future__ import annotations

import http.client
import io
import json
import logging
import math
import socket
import ssl
import threading
import time
from dataclasses import dataclass
from functools import cache, partial
from types import TracebackType
from typing import Any, Self
from urllib.parse import SplitResult, urlsplit

import httpx
import orjson

from gateway.errors import ConfigError, UpstreamInvalid, UpstreamTimeout, UpstreamUnavailable

log = logging.getLogger(__name__)

MAX_ANSWER_BYTES = 64_000_000
_CONNECT_SECONDS = 2.0
_IDLE_SECONDS = 30.0
_BUSY = (429, 503)


@dataclass(frozen=True)
class Answer:
    """The body and headers of an answer with a status below 300."""

    body: bytes
    headers: http.client.HTTPMessage

    def json(self) -> Any:
        """The body as JSON; `UpstreamInvalid` if it is none."""
        return parsed(self.body)


class Connection:
    """Kept-alive connections to one server; used from several threads.

    Neither proxies nor credentials of the environment are used, and redirects are not followed: the server is the one
    that is named, and no other.
    """

    def __init__(self, *, timeout: float, token: str | None = None, connections: int = 16) -> None:
        """`connections` are kept open between requests; each request of a thread has one to itself.

        Raises `ConfigError` for a `token` that no header can hold; a line's end behind it, as files have one, is not
        part of it.
        """
        token = (token or "").strip()
        if not (token.isascii() and token.isprintable()):
            raise ConfigError("PALISADE_UPSTREAM_TOKEN: only printable ASCII can be sent")
        self.timeout = timeout
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._kept = connections
        self._lock = threading.Lock()
        self._idle: list[tuple[float, str, http.client.HTTPConnection]] = []
        self._new, self._mine = 0, threading.local()

    @property
    def new(self) -> int:
        """How many connections have been opened and kept so far: a server that was restarted has another one."""
        return self._new

    @property
    def new_here(self) -> int:
        """`new`, of this thread's requests."""
        return getattr(self._mine, "new", 0)

    def get(self, url: str) -> Answer:
        """`post`, without a body."""
        return self._asked("GET", url, b"", {}, time.monotonic() + self.timeout)

    def post(self, url: str, body: bytes, headers: dict[str, str], *, deadline: float = math.inf) -> Answer:
        """The answer to `body`, before `deadline` (`time.monotonic`) and within the connection's timeout.

        Raises `UpstreamUnavailable`, `UpstreamTimeout`, and `UpstreamInvalid` for a status that is no success, a
        redirect, and an answer of more than `MAX_ANSWER_BYTES`.
        """
        return self._asked("POST", url, body, headers, min(deadline, time.monotonic() + self.timeout))

    def close(self) -> None:
        """Close what is open and idle."""
        with self._lock:
            idle, self._idle = self._idle, []
        for _, _, opened in idle:
            opened.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _asked(self, method: str, url: str, body: bytes, headers: dict[str, str], deadline: float) -> Answer:
        try:
            status, found, answer = self._sent(method, url, body, self._headers | headers, deadline)
        except TimeoutError:
            raise UpstreamTimeout(f"the upstream gave no answer within {self.timeout:g} s") from None
        except (OSError, http.client.HTTPException) as error:
            log.warning("%s: %s", url, str(error) or type(error).__name__)
            raise UpstreamUnavailable("the upstream cannot be reached", headers={"Retry-After": "1"}) from None
        if status in _BUSY:
            wait = answer.get("retry-after", "1")
            raise UpstreamUnavailable(
                f"the upstream answered {status}",
                headers={"Retry-After": wait if wait.isascii() and wait.isdecimal() and len(wait) < 6 else "1"},
            )
        if not 200 <= status < 300:
            # For whoever runs both: a caller of the gateway learns neither the address nor the server's own words.
            level = logging.WARNING if method == "POST" else logging.INFO
            log.log(level, "%s: answered %d: %r", url, status, found[:300])
            raise UpstreamInvalid(f"the upstream answered {status}")
        return Answer(found, answer)

    def _sent(
        self, method: str, url: str, body: bytes, headers: dict[str, str], deadline: float
    ) -> tuple[int, bytes, http.client.HTTPMessage]:
        parts = urlsplit(url)
        server = f"{parts.scheme}://{parts.netloc}"
        kept = self._taken(server)
        if kept is not None:
            try:
                return self._once(kept, server, method, parts, body, headers, deadline)
            except TimeoutError:
                raise
            except (OSError, http.client.HTTPException):
                # A server may close an idle connection just as it is used again: such a request was not read.
                self.close()
        return self._once(_opened(parts), server, method, parts, body, headers, deadline)

    def _once(
        self,
        connection: http.client.HTTPConnection,
        server: str,
        method: str,
        parts: SplitResult,
        body: bytes,
        headers: dict[str, str],
        deadline: float,
    ) -> tuple[int, bytes, http.client.HTTPMessage]:
        keep, new = False, connection.sock is None
        try:
            connection.response_class = partial(_Response, deadline=deadline)  # type: ignore[assignment]
            if new:
                connection._create_connection = partial(_dialled, deadline)  # type: ignore[attr-defined]  # noqa: SLF001
                try:
                    connection.connect()
                except TimeoutError:
                    _left(deadline)  # where that has not passed, nobody is there
                    raise ConnectionError(f"no connection within {_CONNECT_SECONDS:g} s") from None
            connection.sock.settimeout(_left(deadline))  # of all that is sent
            target = f"{parts.path or '/'}{f'?{parts.query}' if parts.query else ''}"
            connection.request(method, target, body if method == "POST" else None, headers)
            response = connection.getresponse()
            found = response.read(MAX_ANSWER_BYTES + 1)
            if len(found) > MAX_ANSWER_BYTES:
                raise UpstreamInvalid(f"the upstream's answer has more than {MAX_ANSWER_BYTES} bytes")
            if response.length:
                raise http.client.IncompleteRead(found, response.length)
            keep = response.isclosed() and not response.will_close and response.status >= 200
            return response.status, found, response.headers
        finally:
            self._left_over(connection, server, keep=keep, new=new)

    def _taken(self, server: str) -> http.client.HTTPConnection | None:
        """An idle connection to `server`, the one last used; those that are too old are closed."""
        now = time.monotonic()
        with self._lock:
            old = [opened for since, _, opened in self._idle if now - since > _IDLE_SECONDS]
            self._idle = [entry for entry in self._idle if now - entry[0] <= _IDLE_SECONDS]
            at = next((i for i in range(len(self._idle) - 1, -1, -1) if self._idle[i][1] == server), None)
            taken = None if at is None else self._idle.pop(at)[2]
        for opened in old:
            opened.close()
        return taken

    def _left_over(self, connection: http.client.HTTPConnection, server: str, *, keep: bool, new: bool) -> None:
        if new and keep:
            self._mine.new = self.new_here + 1
        with self._lock:
            self._new += new and keep
            if keep and len(self._idle) < self._kept:
                self._idle.append((time.monotonic(), server, connection))
                return
        connection.close()


class _Response(http.client.HTTPResponse):
    """A response whose reads end at a deadline: the client bounds each of them, not their sum.

    And one that skips every status that comes before the answer: the client skips 100 alone, and would take 103 (early
    hints) for the answer, and the answer for that to the next request of the connection.
    """

    def __init__(self, sock: socket.socket, *arguments: Any, deadline: float, **named: Any) -> None:
        super().__init__(sock, *arguments, **named)
        self.fp = io.BufferedReader(_Bounded(sock, self.fp.detach(), deadline), 65536)

    def _read_status(self) -> tuple[str, int, str]:
        version, status, reason = super()._read_status()  # type: ignore[misc]  # the client's own, of every version
        before = http.client.SWITCHING_PROTOCOLS < status < http.client.OK
        return version, http.client.CONTINUE if before else status, reason

    def _read_next_chunk_size(self) -> int:
        size: int = super()._read_next_chunk_size()  # type: ignore[misc]
        if size < 0:  # which the client would read to the end, whatever the largest answer is
            raise ValueError("a chunk of negative size")
        return size


class _Bounded(io.RawIOBase):
    """The bytes of a socket, read before a deadline; `TimeoutError` at it, also if the server drips them."""

    def __init__(self, sock: socket.socket, raw: io.RawIOBase, deadline: float) -> None:
        self._sock, self._raw, self._deadline = sock, raw, deadline

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        self._sock.settimeout(_left(self._deadline))
        return self._raw.readinto(buffer)

    def close(self) -> None:
        self._raw.close()
        super().close()


def _left(deadline: float) -> float:
    """Seconds until `deadline`; `TimeoutError` if there are none."""
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError("the deadline has passed")
    return left


def _opened(parts: SplitResult) -> http.client.HTTPConnection:
    host = parts.hostname or ""
    if parts.scheme == "https":
        return http.client.HTTPSConnection(host, parts.port, context=_certificates())
    return http.client.HTTPConnection(host, parts.port)


def _dialled(deadline: float, address: tuple[str, int], *_: Any) -> socket.socket:
    """A connection to the first of a host's addresses that takes one: the client bounds each attempt, not their sum."""
    failed = OSError(f"{address[0]} has no address")
    for family, kind, protocol, _name, place in socket.getaddrinfo(*address, type=socket.SOCK_STREAM):
        opened = socket.socket(family, kind, protocol)
        try:
            opened.settimeout(min(_left(deadline), _CONNECT_SECONDS))
            opened.connect(place)
        except OSError as error:
            opened.close()
            failed = error
        else:
            return opened
    raise failed


@cache
def _certificates() -> ssl.SSLContext:
    return httpx.create_ssl_context()  # those of SSL_CERT_FILE or SSL_CERT_DIR, where a cluster has its own authority


def parsed(body: bytes) -> Any:
    """JSON text as Python has it, with its NaN and Infinity; `UpstreamInvalid` if it is none."""
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError:
        pass
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        raise UpstreamInvalid("the upstream's answer is not JSON") from None
