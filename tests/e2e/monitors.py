"""A Prometheus and an Alertmanager of one's own, configured as deploy/ ships them, but for looking every second."""

from __future__ import annotations

import contextlib
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import yaml

from tests.deploy.deployment import DEPLOY, load
from tests.gateway.server import free_port


class Monitor:
    """A process that answers on a port of 127.0.0.1."""

    def __init__(self, program: str, port: int, folder: Path, *options: str) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self.log = folder / f"{program}.log"
        with self.log.open("wb") as file:
            self._process = subprocess.Popen(
                [program, f"--web.listen-address=127.0.0.1:{port}", *options],
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                cwd=folder,
            )

    def get(self, path: str, **parameters: str) -> Any:
        answer = httpx.get(self.url + path, params=parameters, timeout=10)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def wait(self, seconds: float = 30.0) -> None:
        deadline = time.monotonic() + seconds
        while True:
            assert self._process.poll() is None, self.log.read_text()
            with contextlib.suppress(httpx.TransportError):
                if httpx.get(self.url + "/-/ready").status_code == 200:
                    return
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.1)

    def close(self) -> None:
        self._process.terminate()
        self._process.wait(20)


class Alertmanager(Monitor):
    def __init__(self, folder: Path) -> None:
        config = DEPLOY / "alertmanager" / "alertmanager.yml"
        options = [f"--config.file={config}", f"--storage.path={folder / 'silences'}", "--cluster.listen-address="]
        super().__init__("prometheus-alertmanager", free_port(), folder, *options)

    def alerts(self) -> dict[str, str]:
        """Names of the alerts that were received and not resolved, with their state: `active` or `suppressed`."""
        return {alert["labels"]["alertname"]: alert["status"]["state"] for alert in self.get("/api/v2/alerts")}


class Prometheus(Monitor):
    """Scrapes `gateway` (host:port) with `token`, every second; rules are evaluated as often.

    The rules are those of deploy/ but for their pace: what has to hold for minutes has to hold for as many seconds.
    """

    def __init__(self, folder: Path, *, gateway: str, token: str, alertmanager: Alertmanager) -> None:
        port = free_port()
        self._write_config(folder, port, gateway, token, alertmanager)
        options = [f"--config.file={folder / 'prometheus.yml'}", f"--storage.tsdb.path={folder / 'tsdb'}"]
        super().__init__("prometheus", port, folder, *options)

    def value(self, query: str) -> float:
        """The one number that `query` gives, 0 if nothing."""
        found = self.get("/api/v1/query", query=query)["data"]["result"]
        assert len(found) <= 1, found
        return float(found[0]["value"][1]) if found else 0.0

    def by(self, label: str, query: str) -> dict[str, float]:
        """`sum by (label) (query)`, without what is zero."""
        found = self.get("/api/v1/query", query=f"sum by ({label}) ({query})")["data"]["result"]
        return {series["metric"].get(label, ""): n for series in found if (n := float(series["value"][1]))}

    def samples(self, selector: str) -> Iterator[list[float]]:
        """Every value that was scraped of each series in the last hour, in order."""
        for series in self.get("/api/v1/query", query=f"{selector}[1h]")["data"]["result"]:
            yield [float(value) for _, value in series["values"]]

    @staticmethod
    def _write_config(folder: Path, port: int, gateway: str, token: str, alertmanager: Alertmanager) -> None:
        config = load("prometheus", "prometheus.yml")
        config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
        (receiver,) = config["alerting"]["alertmanagers"]
        receiver["static_configs"][0]["targets"] = [alertmanager.url.removeprefix("http://")]
        ours, itself = config["scrape_configs"]
        (folder / "token").write_text(token)
        ours["authorization"]["credentials_file"] = str(folder / "token")
        ours["static_configs"][0]["targets"] = [gateway]
        itself["static_configs"][0]["targets"] = [f"127.0.0.1:{port}"]
        (folder / "rules").mkdir()
        for file in (DEPLOY / "prometheus" / "rules").glob("*.yml"):
            rules = load("prometheus", "rules", file.name)
            for group in rules["groups"]:
                group["interval"] = "1s"
                for rule in group["rules"]:
                    if "for" in rule:
                        rule["for"] = rule["for"].replace("m", "s")
            (folder / "rules" / file.name).write_text(yaml.safe_dump(rules))
        (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
