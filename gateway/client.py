"""Requests of the command line to a running gateway."""

from __future__ import annotations

import itertools
import math
import random
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import httpx

from gateway.errors import BadParameter, PalisadeError

# Statuses of a gateway that has no room now and will have some.
ROOM_AGAIN = frozenset({429, 503})
# `Retry-After: 0`, as some proxies send it, would else be a loop without a pause.
_SHORTEST_PAUSE, _LONGEST_PAUSE = 0.1, 5.0
_KEY = re.compile("[!-~]+")


class GatewayAnswer(PalisadeError):
    """A gateway answered with an error, whose `status` and `code` these are."""

    title = "The gateway answered with an error"

    def __init__(self, response: httpx.Response) -> None:
        try:
            problem = response.json()
            self.code, detail = str(problem["code"]), f"{problem['detail']}"
        except (ValueError, KeyError, TypeError):
            self.code, detail = f"http_{response.status_code}", f"{response.url}: {response.reason_phrase}"
        super().__init__(f"{detail} ({response.status_code} {self.code})")
        self.status = response.status_code
        stated = response.headers.get("retry-after", "")
        self.retry_after = float(stated) if stated.isdecimal() else 1.0


class GatewayUnreachable(PalisadeError):
    """There was no answer, or it was not that of a gateway."""

    status, code, title = 502, "gateway_unreachable", "The gateway does not answer"


@dataclass(frozen=True)
class Patience:
    """For how long a request is sent again: `tries` times in all at most, and for `seconds`.

    With `reconnect` also where nothing listens, as while a gateway restarts.
    """

    tries: float = math.inf
    seconds: float = math.inf
    reconnect: bool = False


class Gateway:
    """A running gateway at `url` (http or https), asked with the API key `key` if there is one; used from any thread.

    Redirects are not followed: a key goes to the host that it was given for.
    """

    def __init__(self, url: str, key: str | None = None) -> None:
        if key and not _KEY.fullmatch(key):
            raise BadParameter("--key: it has characters that no key has")
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        try:
            parsed = httpx.URL(url)
            self._client = httpx.Client(base_url=parsed, headers=headers)
        except (httpx.InvalidURL, UnicodeEncodeError):  # of a host that no encoding has
            parsed = httpx.URL()
        if parsed.scheme not in ("http", "https") or not parsed.host:
            raise BadParameter(f"--url {url!r}: expected http://host:port")
        self.url = url.rstrip("/")

    def call(
        self, method: str, *path: str, query: dict[str, Any] | None = None, body: object = None, timeout: float = 30.0
    ) -> Any:
        """The JSON answer to a request for the segments `path`, an object with `models`; raises as `send` does."""
        segments = "/".join(quote(part, safe="") for part in path)
        response = self.send(method, segments, params=query, json=body, timeout=timeout)
        try:
            answer = response.json()
        except ValueError:
            raise GatewayUnreachable(f"{self.url} does not answer as a gateway does: the answer is not JSON") from None
        models = answer.get("models") if isinstance(answer, dict) else None
        if not (isinstance(models, list) and all(isinstance(model, dict) and "name" in model for model in models)):
            raise GatewayUnreachable(f"{self.url} does not answer as a gateway does: the answer lists no models")
        return answer

    def send(self, method: str, path: str, **request: Any) -> httpx.Response:
        """The answer to a request of httpx; raises `GatewayAnswer` for an error, `GatewayUnreachable` for none."""
        try:
            response = self._client.request(method, path, **request)
        except httpx.RequestError as error:
            raise GatewayUnreachable(f"{self.url} does not answer: {error or type(error).__name__}") from error
        if not response.is_success:
            raise GatewayAnswer(response)
        return response

    def send_patiently(
        self,
        method: str,
        path: str,
        *,
        patience: Patience,
        sleep: Callable[[float], None] = time.sleep,
        **request: Any,
    ) -> httpx.Response:
        """As `send`, and again while the gateway has no room (429 and 503) or a connection breaks.

        It waits as long as `Retry-After` states, or ever longer after a broken connection (a worker may have ended
        while others serve), plus up to a quarter, so that threads that were refused together return apart.
        Raises the last refusal once `patience` is at its end; `content` must be bytes, as it may be sent again.
        """
        deadline = time.monotonic() + patience.seconds
        for attempt in itertools.count(1):
            try:
                return self.send(method, path, **request)
            except GatewayAnswer as error:
                if error.status not in ROOM_AGAIN:
                    raise
                last: PalisadeError = error
                pause = max(error.retry_after, _SHORTEST_PAUSE)
            except GatewayUnreachable as error:
                if isinstance(error.__cause__, httpx.ConnectError) and not patience.reconnect:
                    raise
                last, pause = error, min(2.0 ** min(attempt, 10) / 16, _LONGEST_PAUSE)
            pause *= random.uniform(1.0, 1.25)
            if attempt >= patience.tries or time.monotonic() + pause > deadline:
                raise last
            sleep(pause)
        raise AssertionError("unreachable: the loop has no end")
