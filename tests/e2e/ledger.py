"""What a client saw: every answer, counted as the gateway's metrics should have counted it."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Sequence
from typing import Any

from benchmarks.loadgen import drive, request_bytes
from tests.gateway.server import Server

CLIENTS = 8


class Ledger:
    """Counts by outcome, served label and error code; `broken` are connections that ended without an answer."""

    def __init__(self) -> None:
        self.outcomes: Counter[str] = Counter()
        self.labels: Counter[str] = Counter()
        self.codes: Counter[str] = Counter()
        self.neutralized: Counter[str] = Counter()
        self.broken = 0

    def send(self, server: Server, bodies: Sequence[bytes]) -> None:
        """Send every body once and count what comes back.

        Connections are kept for some requests only: a worker that is awake may accept all that open at once.
        """
        requests = [request_bytes(server.url + "/v1/predict", body) for body in bodies]
        for i in range(0, len(requests), 10 * CLIENTS):
            some = requests[i : i + 10 * CLIENTS]
            tally = asyncio.run(
                drive(server.url, some, clients=CLIENTS, seconds=60.0, limit=len(some), keep_bodies=True)
            )
            assert sum(tally.statuses.values()) + tally.broken == len(some)
            self.broken += tally.broken
            for body in map(json.loads, tally.bodies):
                self._count(body)

    def _count(self, answer: dict[str, Any]) -> None:
        if "code" in answer:
            self.codes[answer["code"]] += 1
            self.outcomes["rejected" if answer["status"] < 500 else "failed"] += 1
            return
        self.outcomes["flagged" if answer["verdict"]["flagged"] else "ok"] += 1
        self.labels[answer["prediction"]["label"]] += 1
        if answer["neutralization"]["applied"]:
            self.neutralized[str(answer["neutralization"]["changed"]).lower()] += 1

    @property
    def answers(self) -> int:
        return sum(self.outcomes.values())
