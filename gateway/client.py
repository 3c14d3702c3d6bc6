"""Requests of the command line to a running gateway."""

from __future__ import annotations

import json
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import quote, urlencode, urlsplit
from urllib.request import HTTPRedirectHandler, Request, build_opener

from gateway.errors import BadParameter, PalisadeError


class GatewayAnswer(PalisadeError):
    """A gateway answered with an error, or not at all."""

    code = "gateway_answer"
    title = "The gateway answered with an error"


class Gateway:
    """A running gateway at `url` (http or https), asked with the API key `key` if there is one."""

    def __init__(self, url: str, key: str | None = None) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise BadParameter(f"--url {url!r}: expected http://host:port")
        self._url = url.rstrip("/")
        self._headers = {"Authorization": f"Bearer {key}"} if key else {}
        # A key goes to the host that it was given for.
        self._opener = build_opener(_NoRedirects)

    def call(
        self, method: str, *path: str, query: dict[str, Any] | None = None, body: object = None, timeout: float = 30.0
    ) -> Any:
        """The JSON answer to a request for the segments `path`; raises `GatewayAnswer` with the gateway's reason."""
        url = "/".join([self._url, *(quote(part, safe="") for part in path)])
        url += f"?{urlencode(query)}" if query else ""
        data = None if body is None else json.dumps(body).encode()
        headers = {**self._headers, "Content-Type": "application/json"}
        request = Request(url, data, headers, method=method)  # noqa: S310  # the scheme was checked
        try:
            with self._opener.open(request, timeout=timeout) as response:
                return json.load(response)
        except HTTPError as error:
            raise GatewayAnswer(_reason(error)) from None
        except URLError as error:
            raise GatewayAnswer(f"{self._url} does not answer: {error.reason}") from None
        except (OSError, ValueError) as error:
            raise GatewayAnswer(f"{self._url} does not answer as a gateway does: {error}") from None


class _NoRedirects(HTTPRedirectHandler):
    def redirect_request(self, *_: Any) -> None:
        return None


def _reason(error: HTTPError) -> str:
    try:
        problem = json.load(error)
        return f"{problem['detail']} ({error.code} {problem['code']})"
    except (OSError, ValueError, KeyError, TypeError):
        return f"{error.url}: {error.code} {error.reason}"
