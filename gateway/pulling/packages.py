"""The packages of the extra `remote`, and their errors as ours."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

from gateway.errors import ConfigError, PullFailed

CHUNK = 1 << 20
"""Bytes that are read at once."""


@contextmanager
def failing(what: str) -> Iterator[None]:
    """Errors of packages and networks as `PullFailed`; a missing file stays `FileNotFoundError`."""
    try:
        yield
    except (FileNotFoundError, PullFailed, ConfigError, GeneratorExit):
        raise
    except Exception as error:  # noqa: BLE001 (each store has errors of its own)
        raise PullFailed(f"{what}: {one_line(error)}") from None


def package(name: str, use: str = "bundles from elsewhere", extra: str = "remote") -> ModuleType:
    """A package of an extra; `ConfigError` says what needs it and how it is installed."""
    try:
        return importlib.import_module(name)
    except ImportError:
        raise ConfigError(f"{use} need {name}: pip install 'palisade-gateway[{extra}]'") from None


def one_line(error: BaseException) -> str:
    """An error's text, short enough for a line."""
    return (" ".join(str(error).split()) or type(error).__name__)[:300]
