"""The model server behind a gateway is killed under load: who is answered what, and which events are lost."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil

from benchmarks.servers import Server, palisade

CLIENTS, AWAY = 8, 4.0


@dataclass
class Seen:
    """What clients met while the peer was killed and came back."""

    answers: list[tuple[float, float, str, bool, str]] = field(default_factory=list)
    """When it was sent, seconds, status with the code of an error, flagged, request id."""


def killed_under_load(
    start: Callable[[str], AbstractContextManager[Server]],
    made: Path,
    model: str,
    bodies: list[bytes],
    place: Path,
    *,
    before: float,
) -> dict[str, Any]:
    """Clients send the images `bodies` while the peer is killed (SIGKILL); every flagged answer must have its event.

    `start` starts the peer of `made`, a bundle of palisade guard, again; `model` is the address that the first one had.
    """
    with start("-killed") as peer:
        upstream = peer.url + model[model.index("/v2") :]
        with palisade(
            made,
            path="/v1/predict",
            threads=1,
            upstream=upstream,
            audit_sample=0.0,
            data_dir=place / "data",
            upstream_timeout=2.0,
        ) as gateway:
            seen, end = Seen(), time.monotonic() + before + AWAY
            with ThreadPoolExecutor(CLIENTS + 1) as pool:
                jobs = [pool.submit(_client, gateway.url, bodies, k, end, seen) for k in range(CLIENTS)]
                time.sleep(before)
                killed = time.monotonic()
                root = psutil.Process(peer.process.pid)
                for process in [root, *root.children(recursive=True)]:
                    process.kill()
                for job in jobs:
                    job.result()
            ready = httpx.get(f"{gateway.url}/readyz").status_code
            flagged = {identifier for *_, yes, identifier in seen.answers if yes}
            events = _events(gateway.url, flagged)
    return {
        "clients": CLIENTS,
        "seconds_before": before,
        "answers_before": dict(Counter(a[2] for a in seen.answers if a[0] < killed)),
        "answers_after": dict(Counter(a[2] for a in seen.answers if a[0] >= killed)),
        "longest_answer_s": round(max(a[1] for a in seen.answers), 3),
        "readyz_without_peer": ready,
        "flagged_answers": len(flagged),
        "events_lost": len(flagged - events),
    }


def _client(url: str, bodies: list[bytes], number: int, end: float, seen: Seen) -> None:
    with httpx.Client(timeout=60) as client:
        i = number
        while time.monotonic() < end:
            sent = time.monotonic()
            answer = client.post(f"{url}/v1/predict", content=bodies[i % len(bodies)])
            found, status = answer.json(), str(answer.status_code)
            flagged = answer.status_code == 200 and found["verdict"]["flagged"]
            if answer.status_code != 200:
                status += f" {found['code']}"
            seen.answers.append((sent, time.monotonic() - sent, status, flagged, answer.headers["x-request-id"]))
            if answer.status_code != 200:
                time.sleep(0.05)
            i += 1


def _events(url: str, wanted: set[str]) -> set[str]:
    """Those of the ids `wanted` that the audit trail has, once it has all that it is going to have."""
    deadline, found = time.monotonic() + 20, set[str]()
    while found != wanted and time.monotonic() < deadline:
        for identifier in wanted - found:
            if httpx.get(f"{url}/v1/events/{identifier}").status_code == 200:
                found.add(identifier)
        time.sleep(0.5)
    return found
