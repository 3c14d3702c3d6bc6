"""Where a bundle may be fetched from: object stores and file systems (fsspec), and OCI registries (oras).

Both packages are the extra `remote`. What they deliver is believed by nobody: `gateway.pulling.pull` checks it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Protocol

from gateway.errors import ConfigError, PullFailed
from gateway.pulling.packages import CHUNK, failing, one_line, package
from gateway.pulling.registries import Artefact

ADDRESS = re.compile(r"^([a-z][a-z0-9+]*)://(.+)$")
"""`PROTOCOL://REST`, in two groups."""


class Source(Protocol):
    """A bundle's files, by their paths in it."""

    def open(self, name: str) -> Iterator[bytes]:
        """The bytes of a file in pieces; raises `FileNotFoundError` and `PullFailed`."""
        ...


def open_source(url: str) -> Source:
    """The source at an address such as `s3://bucket/gtsrb` or `oci://registry.example/models/gtsrb:1.5.1`.

    Raises `ConfigError` for an address that no package at hand can open, and `PullFailed` if it does not answer.
    """
    matched = ADDRESS.match(url)
    if matched is None:
        raise ConfigError(f"{url!r}: expected s3://BUCKET/PATH or oci://REGISTRY/NAME:TAG")
    refuse_credentials(url)
    if matched[1] == "oci":
        return Artefact(matched[2])
    return Folder(url, matched[1])


def refuse_credentials(url: str) -> None:
    """Raises `ConfigError` for an address with a user or password."""
    if "@" in url.partition("://")[2].split("/", 1)[0]:
        raise ConfigError("a URL with a user or password would be logged: give credentials by the environment")


class Folder:
    """A folder of an object store or file system that fsspec opens; credentials are those of its environment."""

    def __init__(self, url: str, protocol: str) -> None:
        fsspec = package("fsspec")
        self._url = url.rstrip("/")
        try:
            self._files, self._root = fsspec.core.url_to_fs(self._url)
        except (ImportError, ValueError) as error:
            raise ConfigError(f"{protocol}://: {one_line(error)} (pip install 'palisade-gateway[remote]')") from None
        except Exception as error:  # noqa: BLE001 (each store has errors of its own)
            raise PullFailed(f"{self._url}: {one_line(error)}") from None

    def open(self, name: str) -> Iterator[bytes]:
        # Without a cache: a file is read once, from its beginning to its end.
        where, options = f"{self._root}/{name}", {"cache_type": "none", "block_size": 8 * CHUNK}
        with failing(f"{self._url}/{name}"), self._files.open(where, "rb", **options) as file:
            while piece := file.read(CHUNK):
                yield piece
