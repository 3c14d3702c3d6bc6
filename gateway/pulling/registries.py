"""A bundle as an artefact of an OCI registry: one layer a file, named by its title, as `oras push` makes it.

The registry's credentials are those of the container tools (`~/.docker/config.json`). What the registry sends is
compared with the digests that the artefact states, and the artefact with the digest in its address, if there is one.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import posixpath
from collections.abc import Iterator
from functools import partial
from typing import Any

from gateway.errors import ConfigError, PullFailed
from gateway.pulling.packages import CHUNK, failing, package

_TITLE = "org.opencontainers.image.title"
_MANIFESTS = "application/vnd.oci.image.manifest.v1+json"
_LARGEST = 4 << 20
_TIMEOUT = 30.0
"""Seconds without a byte after which a registry has failed."""


class Artefact:
    """One artefact: `REGISTRY/NAME:TAG` or `REGISTRY/NAME@sha256:...`; http for registries of this machine."""

    def __init__(self, reference: str) -> None:
        provider, container = package("oras.provider"), package("oras.container")
        try:
            self._container = container.Container(reference)
        except ValueError as error:
            raise ConfigError(f"oci://{reference}: {error}") from None
        self._reference = f"oci://{reference}"
        host = reference.split("/", 1)[0].rsplit(":", 1)[0]
        self._registry = provider.Registry(insecure=host in ("localhost", "127.0.0.1", "[::1]"))
        # The package sets no time-out, and asks again for more than two minutes; `pull` asks again itself.
        self._registry.session.request = partial(self._registry.session.request, timeout=_TIMEOUT)
        self._registry.do_request = partial(inspect.unwrap(provider.Registry.do_request), self._registry)
        with failing(self._reference):
            self._registry.auth.load_configs(self._container)
            self._layers = self._read_manifest()

    def _read_manifest(self) -> dict[str, dict[str, Any]]:
        """The layers by the path that their title gives."""
        url = f"{self._registry.prefix}://{self._container.manifest_url()}"
        answer = self._registry.do_request(url, headers={"Accept": _MANIFESTS}, stream=True)
        if answer.status_code == 404:
            raise PullFailed(f"{self._reference}: the registry has no such artefact")
        if answer.status_code != 200:
            raise PullFailed(f"{self._reference}: the registry answered {answer.status_code}")
        data = b""
        for piece in answer.iter_content(CHUNK):
            data += piece
            if len(data) > _LARGEST:
                raise PullFailed(f"{self._reference}: its manifest is larger than {_LARGEST} bytes")
        wanted = self._container.digest
        if wanted and wanted != f"sha256:{hashlib.sha256(data).hexdigest()}":
            raise PullFailed(f"{self._reference}: the registry sent another manifest than that of this digest")
        layers: dict[str, dict[str, Any]] = {}
        for layer in json.loads(data)["layers"]:
            name = posixpath.normpath(layer["annotations"][_TITLE])
            if layers.setdefault(name, layer) is not layer:
                raise PullFailed(f"{self._reference}: two layers are named {name}")
        return layers

    def open(self, name: str) -> Iterator[bytes]:
        if name not in self._layers:
            raise FileNotFoundError(name)
        layer, found, size = self._layers[name], hashlib.sha256(), 0
        with failing(f"{self._reference}: {name}"):
            answer = self._registry.get_blob(self._container, layer["digest"], stream=True)
            if answer.status_code != 200:
                raise PullFailed(f"{self._reference}: {name}: the registry answered {answer.status_code}")
            for piece in answer.iter_content(CHUNK):
                found.update(piece)
                size += len(piece)
                if size > layer["size"]:
                    break
                yield piece
            if (f"sha256:{found.hexdigest()}", size) != (layer["digest"], layer["size"]):
                raise PullFailed(f"{self._reference}: {name}: the registry sent other bytes than those of this digest")
