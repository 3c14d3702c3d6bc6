"""A real `bentoml serve` process for end-to-end tests."""

from __future__ import annotations

import contextlib
import random
import re
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil

from gateway.process.serving import server_command, server_environment
from gateway.settings import Settings

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Server:
    url: str
    port: int
    log: Path
    process: subprocess.Popen[bytes]

    def post(self, path: str = "/v1/predict", **request: object) -> httpx.Response:
        return httpx.post(self.url + path, timeout=30, **request)  # type: ignore[arg-type]

    def metrics(self) -> dict[str, float]:
        lines = httpx.get(self.url + "/metrics").text.splitlines()
        return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines if not line.startswith("#")}

    def peak_bytes(self) -> int:
        """Largest resident size that any process of the server ever had."""
        peaks = []
        for process in psutil.Process(self.process.pid).children(recursive=True):
            status = Path(f"/proc/{process.pid}/status").read_text()
            match = re.search(r"VmHWM:\s+(\d+) kB", status)
            peaks.append(int(match[1]) * 1024 if match else 0)
        return max(peaks)


def free_port() -> int:
    """A free port, below those that outgoing connections take while a server still starts."""
    while True:
        port = random.randrange(20_000, 32_000)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def start(models: Path, folder: Path, *, home: Path | None = None, port: int | None = None, **settings: Any) -> Server:
    port = port or free_port()
    chosen = Settings(**{"models": [models], "port": port, "threads": 1, "data_dir": folder / "data", **settings})
    log = folder / "server.log"
    environment = {**server_environment(chosen), "BENTOML_HOME": str(home or folder)}
    with log.open("wb") as file:
        process = subprocess.Popen(
            server_command(chosen), cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, stdout=file, stderr=file
        )
    return Server(f"http://127.0.0.1:{port}", port, log, process)


def wait_until_ready(server: Server, seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        assert server.process.poll() is None, server.log.read_text()
        try:
            if httpx.get(server.url + "/readyz").status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.1)
    raise AssertionError(server.log.read_text())


def stop(server: Server) -> None:
    server.process.send_signal(signal.SIGTERM)
    try:
        server.process.wait(20)
    except subprocess.TimeoutExpired:
        server.process.kill()
        server.process.wait()


@contextmanager
def served(models: Path, folder: Path, **settings: Any) -> Iterator[Server]:
    """A server that is ready, and is stopped at the end; its log must hold no traceback."""
    server = start(models, folder, **settings)
    try:
        wait_until_ready(server)
        yield server
        assert "Traceback" not in server.log.read_text()
    finally:
        stop(server)
