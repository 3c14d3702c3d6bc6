"""A real Prometheus and a real Alertmanager over a real gateway of two workers: exact counts, and the right alerts.

Prometheus pulls, so that counts are exact as of a scrape: what a server counts between its last scrape and its end is
lost to any client library. Here a scrape lies between the last answer and the end, as one of the next second would.
A counter begins again at zero when the server does; each life is compared with what clients saw in it, and the sum over
lives is taken from the samples as they were scraped, as `increase` extrapolates.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from prometheus_client.multiprocess import MultiProcessCollector

from gateway.telemetry.worker_metrics import FOLDER
from tests.deploy.deployment import DEPLOY, load
from tests.e2e.ledger import Ledger
from tests.e2e.monitors import Alertmanager, Prometheus
from tests.gateway.server import ROOT, Server, free_port, start, stop, wait_until_ready

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(
        not all(map(shutil.which, ("prometheus", "promtool", "prometheus-alertmanager"))),
        reason="Prometheus and Alertmanager are not installed (tests/e2e/install.sh)",
    ),
]

MODELS = ROOT / "models" / "gtsrb"
TOKEN = "scrape-me"  # noqa: S105
ATTACKS = {
    rule["alert"]
    for group in load("prometheus", "rules", "alerts.yml")["groups"]
    if group["name"] == "palisade-attacks"
    for rule in group["rules"]
}
LOST = ("unspooled", "failed", "dropped_spool_full", "refused")


@dataclass
class Site:
    """A gateway that can be restarted, what watches it, and what its clients saw in each of its lives."""

    folder: Path
    port: int
    gateway: Server
    alertmanager: Alertmanager
    prometheus: Prometheus
    lives: list[Ledger] = field(default_factory=lambda: [Ledger()])

    @property
    def seen(self) -> Ledger:
        """What clients saw in this life."""
        return self.lives[-1]

    def send(self, bodies: list[bytes]) -> None:
        self.seen.send(self.gateway, bodies)

    def settle(self) -> None:
        """Wait for a scrape that began after the last answer."""
        now = time.time()
        eventually(lambda: self.prometheus.value('min(timestamp(palisade_ready{job="palisade"}))') > now)

    def restart(self, **settings: object) -> None:
        stop(self.gateway)
        assert self.gateway.process.returncode == 0
        self.gateway = serve(self.folder, self.port, **settings)
        self.lives.append(Ledger())
        self.settle()


def serve(folder: Path, port: int, **settings: Any) -> Server:
    server = start(MODELS, folder, port=port, workers=2, metrics_token=TOKEN, **settings)
    wait_until_ready(server, 120)
    return server


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder, port = tmp_path_factory.mktemp("site"), free_port()
    gateway = serve(folder, port)
    alertmanager = Alertmanager(folder)
    prometheus = Prometheus(folder, gateway=f"127.0.0.1:{port}", token=TOKEN, alertmanager=alertmanager)
    site = Site(folder, port, gateway, alertmanager, prometheus)
    try:
        alertmanager.wait()
        prometheus.wait()
        eventually(lambda: prometheus.value('palisade_ready{job="palisade"}') == 2)
        yield site
    finally:
        prometheus.close()
        alertmanager.close()
        stop(site.gateway)


def eventually(true: Callable[[], bool], seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.2)


def counted(prometheus: Prometheus) -> dict[str, Counter[str]]:
    """What Prometheus last scraped, in the shape of `Ledger`."""
    return {
        "outcomes": Counter(prometheus.by("outcome", "palisade_requests_total")),
        "labels": Counter(prometheus.by("label", "palisade_predictions_total")),
        "codes": Counter(prometheus.by("code", "palisade_rejected_total")),
        "neutralized": Counter(prometheus.by("changed", "palisade_neutralized_total")),
    }


def check_counts(site: Site) -> None:
    """Prometheus has counted this life's answers, no more and no fewer, in every metric that counts images."""
    site.settle()
    seen, prometheus = site.seen, site.prometheus
    assert counted(prometheus) == {name: getattr(seen, name) for name in counted(prometheus)}
    judged = seen.outcomes["ok"] + seen.outcomes["flagged"]
    assert prometheus.value("sum(palisade_requests_total)") == seen.answers
    assert prometheus.value("sum(palisade_flagged_total)") == seen.outcomes["flagged"]
    for metric in ("palisade_p_value_count", "palisade_cascade_total", "palisade_companion_total"):
        assert prometheus.value(f"sum({metric})") == judged
    assert prometheus.value('palisade_stage_seconds_count{stage="engine"}') == judged
    events = prometheus.by("result", "palisade_audit_events_total")
    assert events.get("spooled", 0) >= seen.outcomes["flagged"]
    assert not any(events.get(result) for result in LOST)


def check_sum_over_lives(site: Site) -> None:
    """The samples as scraped, put together over restarts, give every answer that a client ever saw."""
    total = sum(
        values[0] + sum(after - before if after >= before else after for before, after in pairwise(values))
        for values in site.prometheus.samples("palisade_requests_total")
    )
    assert total == sum(life.answers for life in site.lives)


def check_no_alert(site: Site) -> None:
    """No alert about attacks was ever pending or firing, nor will be."""
    # The longest that one of these rules has to hold is 15 seconds here, in place of minutes.
    time.sleep(17)
    assert site.prometheus.value("palisade:judged:increase2m") > 0
    assert suspected(site) == set()
    assert not ATTACKS & site.alertmanager.alerts().keys()


def suspected(site: Site) -> set[str]:
    """Alerts about attacks that were ever pending or firing."""
    return ATTACKS & site.prometheus.by("alertname", "count_over_time(ALERTS[1h])").keys()


def answers_by_worker(server: Server) -> dict[str, float]:
    """Requests that each worker of this life answered, dead ones too, by the files that they count in."""
    environments = [child.environ() for child in psutil.Process(server.process.pid).children(recursive=True)]
    folder = next(environment[FOLDER] for environment in environments if FOLDER in environment)
    return {
        file.stem: sum(
            sample.value
            for metric in MultiProcessCollector.merge([str(file)])
            for sample in metric.samples
            if sample.name == "palisade_requests_total"
        )
        for file in Path(folder).glob("counter_*.db")
    }


def workers(server: Server) -> set[int]:
    return {worker["pid"] for worker in httpx.get(server.url + "/v1/admin/models", timeout=20).json()["workers"]}


def test_benign_burst_raises_nothing(site: Site, benign: list[bytes]) -> None:
    assert len(set(benign)) >= 2000
    site.send(benign)
    assert (site.seen.broken, site.seen.codes) == (0, Counter())
    check_counts(site)
    by_worker = [n for n in answers_by_worker(site.gateway).values() if n]
    assert (len(by_worker), sum(by_worker)) == (2, len(benign))
    check_no_alert(site)


def test_counts_survive_a_replaced_worker_and_a_restart(site: Site, benign: list[bytes]) -> None:
    before = workers(site.gateway)
    # In the midst of the burst: what it has taken it answers, and another takes its place.
    replace = threading.Timer(0.5, os.kill, (min(before), signal.SIGTERM))
    replace.start()
    site.send(benign[:600])
    replace.join()
    eventually(lambda: len(workers(site.gateway) - before) == 1, 60)
    site.send(benign[600:700])
    check_counts(site)
    site.restart(cascade=True)
    assert site.prometheus.value("sum(palisade_requests_total)") == 0
    site.send([*benign, *[b""] * 7, *[benign[0][:100]] * 5])
    assert site.seen.codes == {"empty_body": 7, "undecodable_image": 5}
    check_counts(site)
    check_sum_over_lives(site)
    check_no_alert(site)


def test_attacked_burst_is_reported(site: Site, benign: list[bytes], attacked: list[bytes]) -> None:
    assert suspected(site) == set()
    traffic = [*benign[:300], *attacked * 3]
    random.Random(0).shuffle(traffic)
    site.send(traffic)
    eventually(lambda: site.alertmanager.alerts().get("PalisadeFlagBurst") == "active")
    # Inhibited by the other, which says the same sooner.
    eventually(lambda: site.alertmanager.alerts().get("PalisadeFlagRateHigh") in ("active", "suppressed"))
    check_counts(site)
    check_sum_over_lives(site)


def test_every_query_of_the_dashboard_gives_data(site: Site, benign: list[bytes], attacked: list[bytes]) -> None:
    site.send([*benign[:50], *attacked[:20], b""])
    site.settle()
    script = [sys.executable, str(DEPLOY / "grafana" / "queries.py"), site.prometheus.url]
    shown = subprocess.run(script, capture_output=True, text=True, check=False)
    assert shown.returncode == 0, shown.stdout + shown.stderr


@pytest.mark.parametrize("check", [["check", "rules"], ["test", "rules"]], ids=" ".join)
def test_promtool(check: list[str]) -> None:
    files = sorted(DEPLOY.glob("prometheus/rules/*.yml" if check[0] == "check" else "prometheus/tests/*.yml"))
    done = subprocess.run(["promtool", *check, *files], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
