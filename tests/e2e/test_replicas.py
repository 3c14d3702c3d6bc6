"""Two real gateways behind nginx, with one PostgreSQL: limits, a rollout, a restart and a kill under load."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from benchmarks.loadgen import Tally, drive, request_bytes
from gateway.access.keys import ApiKey, hash_key, new_key, write_keys
from tests.e2e.audit_postgres import Postgres
from tests.gateway.server import ROOT, Server, free_port, start, stop, wait_until_ready
from tests.gateway.tiny import clean_image, encode, write_bundle

pytestmark = pytest.mark.e2e

IMAGE = encode(clean_image())
CLIENTS = 8


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    for version in ("1.0.0", "2.0.0"):
        write_bundle(folder / version, version=version)
    return folder


class Service:
    """Replicas on ports of their own, and nginx with the file that is shipped before them."""

    def __init__(self, folder: Path, models: Path, url: str, **settings: Any) -> None:
        nginx = shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin")
        if nginx is None:
            pytest.skip("nginx is not installed (apt-get install nginx-light)")
        self._folder, self._models = folder, models
        self._admin, self.key = new_key(), new_key()
        keys_file = folder / "keys.json"
        now = datetime.now(UTC)
        entries = [
            ApiKey(id="admin", sha256=hash_key(self._admin), role="admin", rate=0.0, created=now),
            ApiKey(id="client", sha256=hash_key(self.key), role="client", created=now),
        ]
        write_keys(keys_file, entries)
        self._settings = settings | {"replicas_url": url, "audit": False, "keys_file": keys_file}
        self.ports = [free_port(), free_port()]
        self.replicas = [self._start(i) for i in range(2)]
        for replica in self.replicas:
            wait_until_ready(replica)
        self.port = free_port()
        self._nginx = subprocess.Popen([nginx, "-p", folder, "-c", self._config(), "-g", "daemon off;"])
        self.url = f"http://127.0.0.1:{self.port}"
        wait_for(lambda: _answers(self.url + "/readyz"))

    def restart(self, number: int) -> None:
        """Stop a replica as an orchestrator does, and start it again."""
        stop(self.replicas[number])
        self.replicas[number] = self._start(number)
        wait_until_ready(self.replicas[number])

    def kill(self, number: int) -> None:
        """SIGKILL to every process of a replica at once."""
        root = psutil.Process(self.replicas[number].process.pid)
        for process in [root, *root.children(recursive=True)]:
            process.send_signal(signal.SIGKILL)
        self.replicas[number].process.wait()

    def close(self) -> None:
        self._nginx.terminate()
        self._nginx.wait(10)
        for replica in self.replicas:
            stop(replica)

    def admin(self, number: int, what: str, **body: str) -> httpx.Response:
        """A change that is asked of one replica."""
        headers = {"Authorization": f"Bearer {self._admin}"}
        url = f"{self.replicas[number].url}/v1/admin/models/tiny/{what}"
        return httpx.post(url, headers=headers, json=body or None, timeout=30)

    def versions(self) -> set[str]:
        """The active versions of the replicas."""
        headers = {"Authorization": f"Bearer {self._admin}"}
        return {
            httpx.get(f"{replica.url}/v1/models", headers=headers).json()["models"][0]["version"]
            for replica in self.replicas
        }

    def _start(self, number: int) -> Server:
        folder = self._folder / f"replica{number}"
        folder.mkdir(exist_ok=True)
        return start(self._models, folder, port=self.ports[number], state_dir=folder / "state", **self._settings)

    def _config(self) -> Path:
        text = (ROOT / "deploy" / "nginx" / "palisade.conf").read_text()
        for shipped, port in zip(("127.0.0.1:3000", "127.0.0.1:3001"), self.ports, strict=True):
            text = text.replace(shipped, f"127.0.0.1:{port}")
        text = re.sub(r"listen 8080", f"listen 127.0.0.1:{self.port}", text)
        temporary = "\n".join(
            f"{kind}_temp_path {self._folder}/{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        )
        whole = (
            f"user root;\npid {self._folder}/pid;\nerror_log {self._folder}/error.log;\nevents {{}}\n"
            f"http {{\naccess_log off;\n{temporary}\n{text}\n}}\n"
        )
        if os.getuid() != 0:
            whole = whole.removeprefix("user root;\n")
        file = self._folder / "nginx.conf"
        file.write_text(whole)
        return file


@pytest.fixture
def service(tmp_path: Path, models: Path, postgres: Postgres) -> Iterator[Service]:
    running = Service(tmp_path, models, postgres.url)
    yield running
    running.close()


def wait_for(condition: Callable[[], bool], seconds: float = 30.0) -> float:
    """Seconds until it holds."""
    begun = time.monotonic()
    while not condition():
        assert time.monotonic() < begun + seconds, "it did not come about"
        time.sleep(0.05)
    return time.monotonic() - begun


def _answers(url: str) -> bool:
    try:
        return httpx.get(url).status_code == 200
    except httpx.TransportError:
        return False


class Load:
    """Clients that ask by way of the proxy, one after the other, until `stop`."""

    def __init__(self, service: Service, *, clients: int = CLIENTS, rate: float | None = None, seconds: float) -> None:
        headers = [("Authorization", f"Bearer {service.key}")]
        requests = [request_bytes(service.url + "/v1/predict", IMAGE, headers=headers)]
        self.tally = Tally()

        def run() -> None:
            self.tally = asyncio.run(drive(service.url, requests, clients=clients, seconds=seconds, rate=rate))

        self._thread = threading.Thread(target=run)
        self._thread.start()

    def end(self) -> Tally:
        self._thread.join()
        return self.tally


def test_replicas_hold_one_limit(tmp_path: Path, models: Path, postgres: Postgres) -> None:
    rate, burst, seconds = 4.0, 6, 12.0
    service = Service(tmp_path, models, postgres.url, rate=rate, burst=burst)
    try:
        tally = Load(service, rate=30.0, seconds=seconds).end()
    finally:
        service.close()
    granted, held = tally.statuses[200], burst + rate * seconds
    # What the other replica grants until it has heard: its own burst, and what comes back in two exchanges.
    assert 0.8 * held <= granted <= held + burst + 2 * rate
    assert tally.statuses[429] > 100
    assert not tally.broken
    assert not tally.without_retry_after


def test_a_version_reaches_both_replicas_and_no_request_is_lost(service: Service) -> None:
    load = Load(service, seconds=8.0)
    time.sleep(1)
    assert service.versions() == {"2.0.0"}
    service.admin(0, "activate", version="1.0.0").raise_for_status()
    assert wait_for(lambda: service.versions() == {"1.0.0"}) < 5.0
    service.admin(1, "rollback").raise_for_status()
    wait_for(lambda: service.versions() == {"2.0.0"})
    tally = load.end()
    assert set(tally.statuses) == {200}
    assert not tally.broken


def test_replicas_are_restarted_in_turn_and_no_request_is_lost(service: Service) -> None:
    load = Load(service, seconds=30.0)
    time.sleep(1)
    for number in range(2):
        service.restart(number)
        time.sleep(3)  # nginx asks one that refused again after two
    tally = load.end()
    assert set(tally.statuses) == {200}
    assert not tally.broken
    assert tally.statuses[200] > 200


def test_a_killed_replica_loses_no_more_than_its_requests_in_flight(service: Service) -> None:
    load = Load(service, seconds=10.0)
    time.sleep(2)
    service.kill(0)
    tally = load.end()
    failed = tally.broken + sum(count for status, count in tally.statuses.items() if status != 200)
    assert failed <= CLIENTS
    assert set(tally.statuses) <= {200, 502}
    assert tally.statuses[200] > 200


def test_replicas_go_on_while_the_database_is_away(service: Service, postgres: Postgres) -> None:
    load = Load(service, seconds=10.0)
    time.sleep(1)
    postgres.stop()
    answer = service.admin(0, "activate", version="1.0.0")
    assert (answer.status_code, answer.json()["code"]) == (503, "store_unavailable")
    postgres.start()
    tally = load.end()
    assert set(tally.statuses) == {200}
    assert not tally.broken
    wait_for(lambda: service.admin(0, "activate", version="1.0.0").status_code == 200)
    wait_for(lambda: service.versions() == {"1.0.0"})
