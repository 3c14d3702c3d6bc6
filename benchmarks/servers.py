"""Servers that benchmarks start: the gateway, and what a user would assemble from libraries; images that are sent."""

from __future__ import annotations

import contextlib
import io
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import numpy as np
import psutil
from PIL import Image

from gateway.process.serving import server_command, server_environment
from gateway.settings import Settings

ROOT = Path(__file__).resolve().parents[1]
SENT = (".jpg", ".jpeg", ".png", ".webp", ".bmp")


@dataclass(frozen=True)
class Server:
    """A running server and where it answers."""

    url: str
    path: str
    process: subprocess.Popen[bytes]

    def cpu_seconds(self) -> float:
        """Processor time of the server's processes so far."""
        root = psutil.Process(self.process.pid)
        times = [process.cpu_times() for process in [root, *root.children(recursive=True)]]
        return float(sum(t.user + t.system for t in times))

    def memory_mb(self) -> float:
        """Memory of the server's processes now, shared pages counted once (proportional set size)."""
        root = psutil.Process(self.process.pid)
        found = [process.memory_full_info() for process in [root, *root.children(recursive=True)]]
        return float(sum(getattr(each, "pss", each.rss) for each in found)) / 1e6

    def metrics(self) -> dict[str, float]:
        """Every sample of /metrics; empty for servers that have none."""
        try:
            text = urlopen(f"{self.url}/metrics", timeout=10).read().decode()  # noqa: S310  # our own loopback
        except OSError:
            return {}
        pairs = (line.rpartition(" ") for line in text.splitlines() if line and not line.startswith("#"))
        return {name: float(value) for name, _, value in pairs}


@contextlib.contextmanager
def running(command: list[str], environment: dict[str, str], *, path: str, ready: str, port: int) -> Iterator[Server]:
    """Start a server, wait until `ready` answers 200, and stop it afterwards; `RuntimeError` with its log."""
    url = f"http://127.0.0.1:{port}"
    with tempfile.TemporaryDirectory() as folder, (Path(folder) / "log").open("w+b") as log:
        environment = {**environment, "BENTOML_HOME": folder}
        process = subprocess.Popen(  # noqa: S603  # our own interpreter
            command, cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log
        )
        try:
            end = time.monotonic() + 90
            while not _answers(url + ready):
                if process.poll() is not None or time.monotonic() > end:
                    log.seek(0)
                    raise RuntimeError(f"the server did not start: {log.read().decode()[-2000:]}")
                time.sleep(0.2)
            yield Server(url, path, process)
        finally:
            process.terminate()
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()


def _answers(url: str) -> bool:
    try:
        return bool(urlopen(url, timeout=2).status == 200)  # noqa: S310
    except OSError:
        return False


def free_port() -> int:
    """A port that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def palisade(bundle: Path, *, path: str, threads: int, **settings: Any) -> Iterator[Server]:
    """The gateway with one bundle, and a trail of its own: it would first read that of the user's gateways."""
    port = free_port()
    with tempfile.TemporaryDirectory() as folder:
        chosen = Settings(
            models=[bundle], port=port, threads=threads, max_waiting=1000, data_dir=Path(folder), **settings
        )
        with running(server_command(chosen), server_environment(chosen), path=path, ready="/readyz", port=port) as it:
            yield it


def assembled(bundle: Path, kind: str, *, threads: int) -> contextlib.AbstractContextManager[Server]:
    """One of `benchmarks.assembled`."""
    port = free_port()
    service = f"benchmarks.assembled.{kind}_service:Assembled"
    command = [sys.executable, "-m", "bentoml", "serve", service, "--host", "127.0.0.1", "--port", str(port)]
    environment = {**os.environ, "ASSEMBLED_BUNDLE": str(bundle.resolve()), "ASSEMBLED_THREADS": str(threads)}
    return running(command, environment, path="/predict", ready="/readyz", port=port)


def images_to_send(folder: Path | None) -> list[bytes]:
    """The files of a folder as they are, or the clean images of tests/data as PNG; `SystemExit` if there are none."""
    if folder is not None:
        files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SENT)
        if not files:
            raise SystemExit(f"{folder} has no {', '.join(SENT)} files")
        return [path.read_bytes() for path in files]
    with np.load(ROOT / "tests" / "data" / "gtsrb.npz", allow_pickle=False) as file:
        images = file["x"][file["kind"] == 0]
    encoded = []
    for image in images:
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, "PNG")
        encoded.append(buffer.getvalue())
    return encoded
