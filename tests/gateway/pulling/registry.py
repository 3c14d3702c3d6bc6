"""A registry of OCI artefacts in a thread of the test, that serves one bundle and can lie."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

Lie = Callable[[str, bytes], bytes | None]
"""Given a digest and the bytes of it, the bytes that are sent instead; None: half of them, then the end."""


class Registry:
    """What is served: `reference` is REGISTRY/NAME:TAG, `digest` that of the artefact's manifest."""

    def __init__(self, folder: Path, lie: Lie = lambda digest, data: data) -> None:
        self.lie, self.requests = lie, 0
        self.blobs: dict[str, bytes] = {}
        layers = []
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                data = path.read_bytes()
                title = f"./{path.relative_to(folder).as_posix()}"
                annotations = {"org.opencontainers.image.title": title}
                layers.append({"digest": self._put(data), "size": len(data), "annotations": annotations})
        self.manifest = json.dumps({"schemaVersion": 2, "layers": layers}).encode()
        self.digest = self._put(self.manifest)
        self.reference = ""

    def _put(self, data: bytes) -> str:
        digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
        self.blobs[digest] = data
        return digest


@contextmanager
def serving(registry: Registry) -> Iterator[Registry]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            registry.requests += 1
            kind, name = self.path.rsplit("/", 2)[1:]
            digest = registry.digest if kind == "manifests" and name == "1.0.0" else name
            data = registry.blobs.get(digest)
            if data is None:
                self.send_error(404)
                return
            sent = registry.lie(digest, data)
            self.send_response(200)
            self.send_header("Content-Length", str(len(data if sent is None else sent)))
            self.end_headers()
            self.wfile.write(data[: len(data) // 2] if sent is None else sent)

        def log_message(self, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        registry.reference = f"oci://127.0.0.1:{server.server_port}/models/tiny"
        yield registry
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
