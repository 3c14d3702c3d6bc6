"""A bounded pool of threads for the synchronous pipeline: places to work, places to wait, and a deadline."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from gateway import metrics
from gateway.errors import Overloaded

T = TypeVar("T")


class Workers:
    """Runs jobs in `concurrency` threads while at most `max_waiting` more wait; used from one event loop."""

    def __init__(self, *, concurrency: int, max_waiting: int, timeout: float) -> None:
        self._pool = ThreadPoolExecutor(concurrency, thread_name_prefix="palisade")
        self._concurrency = concurrency
        self._max_waiting = max_waiting
        self._timeout = timeout
        self._admitted = 0

    async def run(self, job: Callable[[float], T]) -> T:
        """Run `job(seconds it waited)` in a thread; `Overloaded` when the queue is full or the deadline passes."""
        if self._admitted >= self._concurrency + self._max_waiting:
            raise Overloaded("too many images are waiting", headers={"Retry-After": "1"})
        queued = time.perf_counter()

        def timed() -> T:
            return job(time.perf_counter() - queued)

        self._count(+1)
        future = self._pool.submit(timed)
        # Counted until the thread is done, not until the caller gives up: a place is free only then.
        loop = asyncio.get_running_loop()
        future.add_done_callback(lambda _: loop.call_soon_threadsafe(self._count, -1))
        try:
            return await asyncio.wait_for(asyncio.wrap_future(future), self._timeout)
        except TimeoutError:
            raise Overloaded(f"no answer within {self._timeout:g} s", headers={"Retry-After": "1"}) from None

    def close(self) -> None:
        """Let running jobs finish and drop those that wait."""
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _count(self, change: int) -> None:
        self._admitted += change
        metrics.queue_depth.set(max(0, self._admitted - self._concurrency))
