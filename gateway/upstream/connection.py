"""HTTP to another server, with bounds on time and size: what goes wrong is one of three errors with a stable code."""

from __future__ import annotations

import json
import logging
import math
import time
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import httpx

from gateway.errors import UpstreamInvalid, UpstreamTimeout, UpstreamUnavailable

log = logging.getLogger(__name__)

MAX_ANSWER_BYTES = 64_000_000
_CONNECT_SECONDS = 2.0
# A server may close an idle connection just as it is used again: such a request was not read, and is sent once more.
_STALE = (httpx.RemoteProtocolError, httpx.ReadError, httpx.WriteError)
_BUSY = (429, 503)


@dataclass(frozen=True)
class Answer:
    """The body and headers of an answer with a status below 300."""

    body: bytes
    headers: httpx.Headers

    def json(self) -> Any:
        """The body as JSON; `UpstreamInvalid` if it is none."""
        return parsed(self.body)


class Connection:
    """Kept-alive connections to one server; used from several threads."""

    def __init__(self, *, timeout: float, token: str | None = None, connections: int = 16) -> None:
        self.timeout = timeout
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        limits = httpx.Limits(max_connections=connections, max_keepalive_connections=connections, keepalive_expiry=30)
        # Neither proxies nor credentials of the environment: the server is the one that is named, and no other.
        self._client = httpx.Client(headers=headers, limits=limits, trust_env=False)

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
        """Close what is open."""
        self._client.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _asked(self, method: str, url: str, body: bytes, headers: dict[str, str], deadline: float) -> Answer:
        try:
            try:
                return self._once(method, url, body, headers, deadline)
            except _STALE:
                return self._once(method, url, body, headers, deadline)
        except httpx.TimeoutException:
            raise UpstreamTimeout(f"the upstream gave no answer within {self.timeout:g} s") from None
        except httpx.HTTPError as error:
            log.warning("%s: %s", url, str(error) or type(error).__name__)
            raise UpstreamUnavailable("the upstream cannot be reached", headers={"Retry-After": "1"}) from None

    def _once(self, method: str, url: str, body: bytes, headers: dict[str, str], deadline: float) -> Answer:
        left = deadline - time.monotonic()
        if left <= 0:
            raise httpx.ReadTimeout("the deadline has passed")
        limits = httpx.Timeout(left, connect=min(left, _CONNECT_SECONDS))
        with self._client.stream(method, url, content=body, headers=headers, timeout=limits) as response:
            found = bytearray()
            for chunk in response.iter_bytes():
                found += chunk
                if len(found) > MAX_ANSWER_BYTES:
                    raise UpstreamInvalid(f"the upstream's answer has more than {MAX_ANSWER_BYTES} bytes")
                # httpx bounds each read, not their sum: a server that drips its answer would never time out.
                if time.monotonic() > deadline:
                    raise httpx.ReadTimeout("the answer came too slowly")
        if response.status_code in _BUSY:
            wait = response.headers.get("retry-after", "1")
            raise UpstreamUnavailable(
                f"the upstream answered {response.status_code}",
                headers={"Retry-After": wait if wait.isascii() and wait.isdecimal() and len(wait) < 6 else "1"},
            )
        if not response.is_success:
            # For whoever runs both: a caller of the gateway learns neither the address nor the server's own words.
            level = logging.WARNING if method == "POST" else logging.INFO
            log.log(level, "%s: answered %d: %r", url, response.status_code, bytes(found[:300]))
            raise UpstreamInvalid(f"the upstream answered {response.status_code}")
        return Answer(bytes(found), response.headers)


def parsed(body: bytes) -> Any:
    """JSON text as Python has it; `UpstreamInvalid` if it is none."""
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        raise UpstreamInvalid("the upstream's answer is not JSON") from None
