"""A model server in a thread of the test, of the Open Inference Protocol v2 or plain; it can misbehave in every way."""

from __future__ import annotations

import base64
import io
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import quote

import numpy as np
from PIL import Image

LENGTH = "Inference-Header-Content-Length"
Model = Callable[[np.ndarray], np.ndarray]


@dataclass
class Fake:
    """What the server does: `model` maps rows (M, C, H, W) or (M, H, W, C) to numbers (M, K).

    `answer` replaces every answer to an inference by other bytes, `status` its status, `pause` waits before it, `drip`
    sends it byte by byte so many seconds apart, `drop` closes the connection in its place.
    """

    model: Model
    shape: list[int]
    classes: int
    datatype: str = "FP32"
    binary: bool = True
    max_batch: int | None = None
    platform: str = "fake"
    output: str = "logits"
    names: list[str] = field(default_factory=lambda: ["net"])
    labels: list[str] | None = None
    answer: bytes | None = None
    status: int = 200
    pause: float = 0.0
    drip: float = 0.0
    drop: bool = False
    token: str | None = None
    batches: list[int] = field(default_factory=list)
    url: str = ""

    def metadata(self) -> dict[str, Any]:
        made: dict[str, Any] = {
            "name": "net",
            "platform": self.platform,
            "inputs": [{"name": "x", "datatype": self.datatype, "shape": self.shape}],
            "outputs": [{"name": self.output, "datatype": "FP32", "shape": [-1, self.classes]}],
        }
        return made

    def server(self) -> dict[str, Any]:
        return {"name": "fake", "extensions": ["binary_tensor_data"] if self.binary else []}

    def infer(self, body: bytes, length: str | None) -> tuple[bytes, dict[str, str]]:
        end = len(body) if length is None else int(length)
        request = json.loads(body[:end])
        (tensor,) = request["inputs"]
        dtype = {"FP32": "<f4", "UINT8": "u1", "FP16": "<f2"}[tensor["datatype"]]
        flat = np.frombuffer(body[end:], dtype) if "parameters" in tensor else np.array(tensor["data"], dtype)
        rows = flat.reshape(tensor["shape"])
        self.batches.append(len(rows))
        values = self.model(rows).astype("<f4")
        described: dict[str, Any] = {"name": self.output, "datatype": "FP32", "shape": list(values.shape)}
        if request["outputs"][0].get("parameters", {}).get("binary_data"):
            described["parameters"] = {"binary_data_size": values.nbytes}
            head = json.dumps({"model_name": "net", "outputs": [described]}).encode()
            return head + values.tobytes(), {LENGTH: str(len(head))}
        described["data"] = values.ravel().tolist()
        return json.dumps({"model_name": "net", "outputs": [described]}).encode(), {}

    def classify(self, body: bytes, content_type: str) -> bytes:
        if content_type == "application/json":
            body = base64.b64decode(json.loads(body)["image"])
        image = np.asarray(Image.open(io.BytesIO(body)), np.float32) / 255
        self.batches.append(1)
        (values,) = self.model(image.transpose(2, 0, 1)[None])
        if self.labels is None:
            return json.dumps({"result": [{"scores": values.tolist()}]}).encode()
        best = np.argsort(-values)[:2]
        return json.dumps([{"label": self.labels[k], "score": float(values[k])} for k in best]).encode()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    fake: Fake

    def log_message(self, *_: Any) -> None: ...

    def do_GET(self) -> None:
        fake = self.fake
        known: dict[str, Any] = {
            "/v2": fake.server(),
            **{f"/v2/models/{quote(name, safe='')}": fake.metadata() for name in fake.names},
        }
        if fake.max_batch is not None:
            known["/v2/models/net/config"] = {"max_batch_size": fake.max_batch}
        found = known.get(self.path)
        self._send(json.dumps(found or {"error": "none"}).encode(), status=200 if found else 404)

    def do_POST(self) -> None:
        fake = self.fake
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if fake.token is not None and self.headers["Authorization"] != f"Bearer {fake.token}":
            self._send(b"{}", status=401)
            return
        if self.path == "/v2/repository/index":
            self._send(json.dumps([{"name": name} for name in fake.names]).encode())
            return
        if fake.drop:
            self.close_connection = True
            return
        time.sleep(fake.pause)
        headers: dict[str, str] = {}
        if fake.answer is not None:
            made = fake.answer
        elif self.path == "/classify":
            made = fake.classify(body, self.headers["Content-Type"])
        else:
            made, headers = fake.infer(body, self.headers[LENGTH])
        self._send(made, headers=headers, status=fake.status, drip=fake.drip)

    def _send(
        self, body: bytes, *, headers: dict[str, str] | None = None, status: int = 200, drip: float = 0.0
    ) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if not drip:
            self.wfile.write(body)
            return
        for byte in body:
            self.wfile.write(bytes([byte]))
            self.wfile.flush()
            time.sleep(drip)


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None: ...


@contextmanager
def faked(fake: Fake, *, port: int = 0) -> Iterator[Fake]:
    """`fake` on a free port of the loopback, its `url` set."""
    server = _Server(("127.0.0.1", port), type("Handler", (_Handler,), {"fake": fake}))
    fake.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield fake
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
