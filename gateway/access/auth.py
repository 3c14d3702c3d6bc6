"""Who is asking, decided before a body is read: API keys, sessions, and the rules where no keys are configured."""

from __future__ import annotations

import hmac
import ipaddress
import logging
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache

from starlette.datastructures import Headers
from starlette.requests import HTTPConnection
from starlette.types import Scope

from gateway.access.keys import ApiKey, Disclosure, KeyRing, Reaction, Role, read_keys
from gateway.access.limits import Limit, address_block, charge
from gateway.access.sessions import COOKIE, CSRF_HEADER, Session, Sessions
from gateway.errors import ConfigError, Forbidden, Unauthorized
from gateway.settings import Settings
from gateway.telemetry import metrics
from gateway.versions.shared_state import Store

log = logging.getLogger(__name__)

SESSION_PATH = "/v1/session"

METRICS_PATH = "/metrics"

# Probes, and the console's page and assets, which hold no data.
OPEN_PATHS = frozenset({"/livez", "/readyz", "/healthz", "/v2/health/live", "/v2/health/ready", "/", "/favicon.ico"})

OPEN_FOLDERS = ("/console/",)

_SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})

_RANK: dict[Role, int] = {"client": 0, "reviewer": 1, "admin": 2}


@dataclass(frozen=True)
class Caller:
    """Who sent a request, what they may do and see, and the bucket they pay from (None: unlimited)."""

    key_id: str | None
    role: Role
    disclosure: Disclosure
    limit: Limit | None = None
    session: Session | None = field(default=None, repr=False)

    def may(self, role: Role) -> bool:
        return _RANK[self.role] >= _RANK[role]


NOBODY = Caller(key_id=None, role="client", disclosure="label")


# A caller, and the reaction that their key's entry states, to the caller as they are treated now.
React = Callable[[Caller, Reaction | None], Caller]


class Auth:
    """Finds the caller of a request by the keys, sessions and rules of `settings`."""

    def __init__(self, settings: Settings, store: Store, react: React | None = None) -> None:
        self._settings = settings
        self._react = react
        self._store = store
        self._ring = None if settings.keys_file is None else KeyRing(settings.keys_file)
        self._bound_to_loopback = is_loopback(settings.host)
        self.sessions = Sessions(store)

    def admit(self, scope: Scope) -> Caller:
        """The caller of an HTTP request, who paid one token for it.

        Raises `Unauthorized`, `Forbidden` (no CSRF token), `KeySuspended`, `RateLimited`, and
        `StoreUnavailable` (sessions only).
        """
        path, method = scope["path"], scope["method"]
        if path in OPEN_PATHS or path.startswith(OPEN_FOLDERS) or (method, path) == ("POST", SESSION_PATH):
            return NOBODY
        headers = Headers(scope=scope)
        if path == METRICS_PATH and self._may_scrape(headers):
            return NOBODY
        caller = self._local_or_stranger(scope, headers) if self._ring is None else self._known(scope, headers)
        if path == METRICS_PATH and not caller.may("admin"):
            raise forbidden("/metrics asks for its own token, or a key with the role admin")
        charge(self._store, caller.limit)
        return caller

    def key(self, presented: str) -> ApiKey | None:
        """The valid key that was presented."""
        return None if self._ring is None else self._ring.find(presented)

    def still(self, caller: Caller, role: Role) -> bool:
        """Whether a caller who was admitted still may what `role` may, for answers that go on and on.

        Raises `StoreUnavailable` (sessions only).
        """
        if self._ring is None or caller.key_id is None:
            return True
        key = self._ring.get(caller.key_id)
        if key is None or _RANK[key.role] < _RANK[role]:
            return False
        return caller.session is None or self.sessions.find(caller.session.cookie, self._ring.get) is not None

    def caller_of(self, key: ApiKey, session: Session | None = None) -> Caller:
        disclosure = key.disclosure or (self._settings.disclosure if key.role == "client" else "full")
        rate = self._settings.rate if key.rate is None and key.role == "client" else key.rate
        caller = Caller(key.id, key.role, disclosure, self._limit(f"key:{key.id}", rate, key.burst), session)
        return caller if self._react is None else self._react(caller, key.campaigns)

    def _known(self, scope: Scope, headers: Headers) -> Caller:
        assert self._ring is not None  # noqa: S101  # only called where keys are configured
        authorization = headers.get("authorization")
        if authorization is not None:
            scheme, _, presented = authorization.partition(" ")
            key = self._ring.find(presented.strip()) if scheme.lower() == "bearer" else None
            if key is None:
                raise _unauthorized("invalid", "this is not a valid key; send Authorization: Bearer <key>")
            metrics.auth_total.labels("key").inc()
            return self.caller_of(key)
        cookie = HTTPConnection(scope).cookies.get(COOKIE)
        if cookie is None:
            raise _unauthorized("missing", "a key is needed: Authorization: Bearer <key>")
        session = self.sessions.find(cookie, self._ring.get)
        if session is None:
            raise _unauthorized("invalid", "the session is over; log in again")
        if scope["method"] not in _SAFE_METHODS and not hmac.compare_digest(
            session.csrf.encode(), headers.get(CSRF_HEADER, "").encode()
        ):
            raise forbidden("the header X-CSRF-Token does not hold this session's token (GET /v1/session returns it)")
        metrics.auth_total.labels("session").inc()
        return self.caller_of(session.key, session)

    def _local_or_stranger(self, scope: Scope, headers: Headers) -> Caller:
        if self._bound_to_loopback and _is_local(scope, headers):
            metrics.auth_total.labels("local").inc()
            return Caller(key_id=None, role="admin", disclosure="full")
        if not self._settings.allow_unauthenticated:
            raise _unauthorized("missing", "no keys are configured: only requests from this machine are answered")
        metrics.auth_total.labels("stranger").inc()
        address = address_block(scope["client"][0]) if scope.get("client") else "unknown"
        limit = self._limit(f"address:{address}", self._settings.rate, None)
        return Caller(key_id=None, role="client", disclosure=self._settings.disclosure, limit=limit)

    def _limit(self, bucket: str, rate: float | None, burst: int | None) -> Limit | None:
        if not rate or rate == math.inf:
            return None
        return Limit(bucket, rate, float(burst or self._settings.burst or max(1.0, rate)))

    def _may_scrape(self, headers: Headers) -> bool:
        token = self._settings.metrics_token
        if token is None:
            return True
        given = headers.get("authorization", "").removeprefix("Bearer ").strip()
        return hmac.compare_digest(given.encode(), token.encode())


def check_access(settings: Settings) -> None:
    """Before the server starts: raise `ConfigError` if it would be open to strangers, or its keys file is invalid."""
    if settings.keys_file is not None:
        keys = [key for key in read_keys(settings.keys_file) if not key.disabled]
        if not keys:
            log.warning("%s has no valid key: nobody can log in", settings.keys_file)
        return
    if is_loopback(settings.host) and not settings.allow_unauthenticated:
        return
    if not settings.allow_unauthenticated:
        raise ConfigError(
            f"PALISADE_HOST={settings.host} without API keys would be open to everybody who can reach it: set "
            "PALISADE_KEYS_FILE (palisade keys create), or PALISADE_ALLOW_UNAUTHENTICATED=true to answer strangers"
        )
    log.warning(
        "strangers are answered without keys, as clients at disclosure %s (PALISADE_ALLOW_UNAUTHENTICATED)",
        settings.disclosure,
    )


@lru_cache(maxsize=1024)
def is_loopback(host: str) -> bool:
    """Whether a name or address, without a port, is this machine's loopback."""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return (mapped or address).is_loopback


def _is_local(scope: Scope, headers: Headers) -> bool:
    """Whether a program of this machine is asking for itself.

    A proxy is not, nor is a web page that a browser of this machine shows: its requests carry another origin, or, when
    its name was rebound to our address, another host.
    """
    if not scope.get("client") or not is_loopback(scope["client"][0]):
        return False
    if "forwarded" in headers or "x-forwarded-for" in headers:
        return False
    host = headers.get("host", "localhost")
    name = host[1:].partition("]")[0] if host.startswith("[") else host.partition(":")[0]
    origin = headers.get("origin")
    return is_loopback(name.lower()) and (origin is None or origin.partition("://")[2] == host)


def _unauthorized(result: str, detail: str) -> Unauthorized:
    metrics.auth_total.labels(result).inc()
    challenge = 'Bearer realm="palisade"' + (', error="invalid_token"' if result == "invalid" else "")
    return Unauthorized(detail, headers={"WWW-Authenticate": challenge})


def forbidden(detail: str) -> Forbidden:
    metrics.auth_total.labels("forbidden").inc()
    return Forbidden(detail)
