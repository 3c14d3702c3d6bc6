"""Sessions of the console: a signed cookie in place of an API key, with a token against forged requests.

Every worker accepts it, whichever made it: the secret is in the shared store. It ends after twelve hours, at logout,
and when its key is disabled or replaced.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass

from gateway.access.keys import ApiKey
from gateway.errors import Conflict
from gateway.versions.shared_state import Store

COOKIE = "palisade_session"
CSRF_COOKIE = "palisade_csrf"
CSRF_HEADER = "x-csrf-token"
LIFETIME = 12 * 3600


@dataclass(frozen=True)
class Session:
    """A session that was opened: its cookie, the token that unsafe requests must repeat, its end (epoch seconds)."""

    key: ApiKey
    cookie: str
    csrf: str
    expires: int

    def __repr__(self) -> str:
        return f"Session({self.key.id})"


class Sessions:
    def __init__(self, store: Store) -> None:
        self._store = store
        self._secret: bytes | None = None

    def open(self, key: ApiKey) -> Session:
        """A new session of `key`; raises `StoreUnavailable`."""
        expires = int(time.time()) + LIFETIME
        return self._session(key, f"{key.id}.{expires}.{secrets.token_urlsafe(16)}", expires)

    def find(self, cookie: str, key_of: Callable[[str], ApiKey | None]) -> Session | None:
        """The session of a cookie, unless it is forged, over, or its key gone; raises `StoreUnavailable`."""
        parts = cookie.rsplit(".", 3)
        if len(parts) != 4 or not (parts[1].isascii() and parts[1].isdigit() and len(parts[1]) < 16):
            return None
        key, expires = key_of(parts[0]), int(parts[1])
        if key is None or expires < time.time():
            return None
        session = self._session(key, cookie.rpartition(".")[0], expires)
        if not hmac.compare_digest(session.cookie.encode(), cookie.encode()):
            return None
        return None if self._store.marked(_ended(session)) else session

    def end(self, session: Session) -> None:
        """Log out: no worker accepts the cookie any more; raises `StoreUnavailable`."""
        self._store.mark(_ended(session), session.expires)

    def _session(self, key: ApiKey, body: str, expires: int) -> Session:
        # The key's hash is signed too: a new key under an old id does not inherit sessions.
        return Session(key, f"{body}.{self._sign('session', body, key.sha256)}", self._sign("csrf", body), expires)

    def _sign(self, *parts: str) -> str:
        if self._secret is None:
            self._secret = self._shared_secret()
        return hmac.new(self._secret, "\n".join(parts).encode(), hashlib.sha256).hexdigest()

    def _shared_secret(self) -> bytes:
        found, _ = self._store.get("session_secret")
        if found is None:
            with contextlib.suppress(Conflict):  # when another worker was first
                self._store.put("session_secret", {"hex": secrets.token_hex(32)}, expected=0)
            found, _ = self._store.get("session_secret")
        assert found is not None  # noqa: S101  # entries are never deleted
        return bytes.fromhex(found["hex"])


def _ended(session: Session) -> str:
    return "ended:" + hashlib.sha256(session.cookie.encode()).hexdigest()
