"""API keys: the file that lists them, and the keys of it that are valid now.

A key is 256 random bits, so its SHA-256 at rest is safe without salt or stretching: nothing can be guessed from it.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import logging
import secrets
import stat
import time
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from gateway.atomic import PRIVATE, replacing
from gateway.errors import ConfigError

log = logging.getLogger(__name__)

Role = Literal["client", "reviewer", "admin"]
Disclosure = Literal["full", "verdict", "label"]
Reaction = Literal["alert", "label", "rate", "block"]
"""What happens to a key that took part in a query campaign."""

PREFIX = "pal_"
RELOAD_SECONDS = 1.0


class ApiKey(BaseModel):
    """One entry of the file; `sha256` is that of the whole key. `rate` 0 is unlimited, None the gateway's default.

    `campaigns` is what happens when the key took part in a query campaign, None the gateway's default.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str = Field(pattern=r"^[A-Za-z0-9_.-]{1,64}$")
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$", repr=False)
    role: Role
    disclosure: Disclosure | None = None
    rate: float | None = Field(default=None, ge=0.0)
    burst: int | None = Field(default=None, ge=1)
    campaigns: Reaction | None = None
    created: datetime
    disabled: bool = False


_ENTRIES = TypeAdapter(list[ApiKey])


def new_key() -> str:
    """A key to hand out: `pal_` and 256 random bits."""
    return PREFIX + secrets.token_urlsafe(32)


def hash_key(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


def read_keys(path: Path) -> list[ApiKey]:
    """The entries of a keys file; `ConfigError` names what is wrong, without the values."""
    try:
        entries = _ENTRIES.validate_json(path.read_bytes())
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}; `palisade keys create` makes keys") from None
    except ValidationError as error:
        first = error.errors(include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ConfigError(f"{path}: {where + ': ' if where else ''}{first['msg']}") from None
    if len({entry.id for entry in entries}) < len(entries):
        raise ConfigError(f"{path}: two keys have the same id")
    return entries


def write_keys(path: Path, entries: list[ApiKey]) -> None:
    """Replace the file whole, readable by its owner alone, or by whoever could read the one before."""
    text = json.dumps([entry.model_dump(mode="json", exclude_none=True) for entry in entries], indent=1) + "\n"
    with replacing(path, mode=PRIVATE) as draft:
        draft.write_text(text, "utf-8")
        with suppress(FileNotFoundError):
            draft.chmod(stat.S_IMODE(path.stat().st_mode))


class KeyRing:
    """The keys of a file, read again within a second of a change.

    While the file cannot be read the last good keys stay valid, or none are; the gateway is never open.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._keys: dict[str, ApiKey] = {}
        self._stamp: object = None
        self._trouble = ""
        self._checked = -RELOAD_SECONDS

    def find(self, key: str) -> ApiKey | None:
        """The enabled key that was presented, in time that does not depend on how much of it is right."""
        found, presented = None, hash_key(key)
        for entry in self._current().values():
            if hmac.compare_digest(entry.sha256, presented):
                found = entry
        return found

    def get(self, key_id: str) -> ApiKey | None:
        """The enabled key with this id."""
        return self._current().get(key_id)

    def _current(self) -> dict[str, ApiKey]:
        now = time.monotonic()
        if now - self._checked >= RELOAD_SECONDS:
            self._checked = now
            stamp = _stamp(self._path)
            if stamp != self._stamp and self._reload():
                self._stamp = stamp
        return self._keys

    def _reload(self) -> bool:
        """Read the file; False where that fails, which is logged once and tried again: a right to read is no change."""
        try:
            entries = read_keys(self._path)
        except ConfigError as error:
            if error.detail != self._trouble:
                log.error("keys are not reloaded, %d stay valid: %s", len(self._keys), error.detail)  # noqa: TRY400
            self._trouble = error.detail
            return False
        self._trouble = ""
        self._keys = {entry.id: entry for entry in entries if not entry.disabled}
        log.info("%d keys are valid", len(self._keys))
        return True


def _stamp(path: Path) -> object:
    try:
        status = path.stat()
    except OSError as error:
        return error.errno
    return status.st_mtime_ns, status.st_size, status.st_ino
