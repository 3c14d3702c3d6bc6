"""A closed-loop HTTP load generator that costs little itself: prepared request bytes over keep-alive connections.

It runs on the machine of the server, so every microsecond of it is one that the server doesn't have; httpx costs about
a millisecond a request, this some 60 microseconds.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import numpy as np


@dataclass
class Tally:
    """What came back: seconds of each answer by status, broken connections, and answers that lacked Retry-After."""

    seconds: dict[int, list[float]] = field(default_factory=dict)
    broken: int = 0
    without_retry_after: int = 0
    bodies: list[bytes] = field(default_factory=list)
    elapsed: float = 0.0

    @property
    def statuses(self) -> Counter[int]:
        return Counter({status: len(times) for status, times in self.seconds.items()})

    def rate(self, status: int = 200) -> float:
        """Answers of `status` a second."""
        return len(self.seconds.get(status, ())) / self.elapsed

    def quantiles_ms(self, status: int = 200) -> dict[str, float]:
        """p50, p95 and p99 of the answers with `status`, in milliseconds."""
        times = self.seconds.get(status)
        if not times:
            return {}
        return {f"p{q}": round(float(np.percentile(times, q)) * 1e3, 3) for q in (50, 95, 99)}


def request_bytes(
    url: str, body: bytes, *, content_type: str = "image/png", headers: Sequence[tuple[str, str]] = ()
) -> bytes:
    """The bytes of a POST request."""
    parts = urlsplit(url)
    target = parts.path + (f"?{parts.query}" if parts.query else "")
    lines = [
        f"POST {target} HTTP/1.1",
        f"Host: {parts.netloc}",
        f"Content-Type: {content_type}",
        f"Content-Length: {len(body)}",
        *(f"{name}: {value}" for name, value in headers),
    ]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


async def drive(
    url: str,
    requests: Sequence[bytes],
    *,
    clients: int,
    seconds: float,
    limit: int | None = None,
    keep_bodies: bool = False,
    rate: float | None = None,
) -> Tally:
    """Let `clients` connections send `requests` in turn for `seconds`, or until `limit` were sent.

    `rate` bounds the requests a second of all clients together, however fast they are answered.
    """
    parts = urlsplit(url)
    tally = Tally()
    turn = itertools.count()
    start = time.perf_counter()

    async def client() -> None:
        connection: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        while time.perf_counter() - start < seconds:
            number = next(turn)
            if limit is not None and number >= limit:
                break
            if rate is not None:
                await asyncio.sleep(max(0.0, start + number / rate - time.perf_counter()))
            try:
                if connection is None:
                    connection = await asyncio.open_connection(parts.hostname, parts.port)
                sent = time.perf_counter()
                status, headers, body = await _exchange(*connection, requests[number % len(requests)])
            except (OSError, asyncio.IncompleteReadError, ValueError):
                tally.broken += 1
                if connection is not None:
                    connection[1].close()
                connection = None
                await asyncio.sleep(0.05)
                continue
            tally.seconds.setdefault(status, []).append(time.perf_counter() - sent)
            if keep_bodies:
                tally.bodies.append(body)
            if status in (429, 503):
                tally.without_retry_after += "retry-after" not in headers
            if headers.get("connection", "").lower() == "close":
                connection[1].close()
                connection = None
        if connection is not None:
            connection[1].close()

    await asyncio.gather(*(client() for _ in range(clients)))
    tally.elapsed = time.perf_counter() - start
    return tally


async def _exchange(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: bytes
) -> tuple[int, dict[str, str], bytes]:
    writer.write(request)
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    first, *lines = head.rstrip().split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    body = b""
    if "content-length" in headers:
        body = await reader.readexactly(int(headers["content-length"]))
    elif headers.get("transfer-encoding", "") == "chunked":
        while size := int((await reader.readline()).strip() or b"0", 16):
            body += await reader.readexactly(size)
            await reader.readexactly(2)
        await reader.readline()
    return int(first.split()[1]), headers, body
