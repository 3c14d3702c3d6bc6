"""A micro-batcher: single items from many requests run together, with a bounded queue and an answer for each.

Lives on one event loop; batches run in threads. An item waits in a *lane* (one graph of one bundle version); lanes take
turns, so a busy model does not starve another. While a thread is free a batch starts at once or, when others
run, after at most `window` seconds. Batch sizes are those of the lane (`sizes`), so that shapes are few.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from gateway.errors import EngineError, Overloaded, PalisadeError
from gateway.telemetry import metrics

log = logging.getLogger(__name__)

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True)
class Done(Generic[R]):
    """The result of an item, the seconds that it waited and those that its batch ran."""

    value: R
    queued: float
    ran: float


@dataclass(eq=False)
class _Item(Generic[T, R]):
    value: T
    deadline: float
    queued: float
    future: asyncio.Future[Done[R]]
    alone: bool = False


@dataclass(eq=False)
class Lane(Generic[T, R]):
    """Items that may share a batch: `run` takes a list of them and returns a result, or an error, for each.

    Fewer than the least of `sizes` run as they are. `cost` is the work of an item, in terms of one of a lane with a
    cost of 1.
    """

    run: Callable[[list[T]], Sequence[R | PalisadeError]]
    sizes: tuple[int, ...] = (1, 2, 4, 8, 16, 32)
    cost: float = 1.0
    waiting: deque[_Item[T, R]] = field(default_factory=deque)

    def take(self) -> list[_Item[T, R]]:
        """The next batch: the largest of `sizes` that the queue fills, or one item that must run alone."""
        if self.waiting[0].alone:
            return [self.waiting.popleft()]
        together = next((i for i, item in enumerate(self.waiting) if item.alone), len(self.waiting))
        size = max((size for size in self.sizes if size <= together), default=together)
        return [self.waiting.popleft() for _ in range(size)]


class MicroBatcher:
    """Runs items in batches, `in_flight` of them at once; `submit` is called from one event loop."""

    def __init__(self, *, in_flight: int = 2, window: float = 0.002) -> None:
        self._pool = ThreadPoolExecutor(in_flight, thread_name_prefix="palisade-engine")
        self._in_flight = in_flight
        self._window = window
        self._running = 0
        self._waiting = 0
        self._turns: deque[Lane[Any, Any]] = deque()
        self._timer: asyncio.TimerHandle | None = None
        self._item_seconds = 0.0
        self._measured = time.monotonic()

    @property
    def waiting(self) -> int:
        """Items that no batch has taken yet."""
        return self._waiting

    @property
    def pace(self) -> float:
        """Seconds an item of cost 1 takes of all engine threads together, in recent batches."""
        return self._item_seconds / self._in_flight

    @property
    def pace_age(self) -> float:
        """Seconds since a batch last ended, whose time is in `pace`."""
        return time.monotonic() - self._measured

    def expected_wait(self) -> float:
        """Seconds that a new item would wait, from the pace of recent batches."""
        return sum(len(lane.waiting) * lane.cost for lane in self._turns) * self.pace

    async def submit(self, lane: Lane[T, R], value: T, *, deadline: float = math.inf) -> Done[R]:
        """The result of one item; `deadline` is on the clock of `time.monotonic`.

        Raises `Overloaded` when the deadline passes before a batch takes the item, and the item's own error. A
        cancelled caller's item is dropped.
        """
        item: _Item[T, R] = _Item(value, deadline, time.monotonic(), asyncio.get_running_loop().create_future())
        self._put(lane, item)
        self._pump()
        try:
            return await item.future
        finally:
            item.future.cancel()

    async def submit_all(self, lane: Lane[T, R], values: Sequence[T], *, deadline: float = math.inf) -> list[Done[R]]:
        """The results of several items, which enter the lane together; raises as `submit`, for the first that fails."""
        loop, now = asyncio.get_running_loop(), time.monotonic()
        items: list[_Item[T, R]] = [_Item(value, deadline, now, loop.create_future()) for value in values]
        for item in items:
            self._put(lane, item)
        self._pump()
        try:
            return await asyncio.gather(*(item.future for item in items))
        finally:
            for item in items:  # those left of a failure are dropped
                item.future.cancel()

    def close(self) -> None:
        """Let running batches finish; what still waits is refused."""
        for lane in self._turns:
            for item in lane.waiting:
                _refuse(item, Overloaded("the gateway is stopping", headers={"Retry-After": "1"}))
        self._turns.clear()
        self._waiting = 0
        self._pool.shutdown(wait=True)

    def _put(self, lane: Lane[T, R], item: _Item[T, R], *, first: bool = False) -> None:
        if not lane.waiting:
            self._turns.append(lane)
        (lane.waiting.appendleft if first else lane.waiting.append)(item)
        self._waiting += 1

    def _pump(self) -> None:
        """Start batches while threads are free; a timer checks again those lanes whose batch may still grow."""
        for _ in range(len(self._turns)):
            if self._running >= self._in_flight or not self._turns:
                break
            lane = self._turns.popleft()
            self._drop_stale(lane)
            if not lane.waiting:
                continue
            oldest = lane.waiting[0]
            due = oldest.queued + self._window
            full = len(lane.waiting) >= lane.sizes[-1] or oldest.alone
            if self._running and not full and time.monotonic() < due:
                self._turns.append(lane)
                self._look_again(due)
                continue
            self._start(lane, lane.take())
            if lane.waiting:
                self._turns.append(lane)
        metrics.queue_depth.set(self._waiting)

    def _drop_stale(self, lane: Lane[Any, Any]) -> None:
        """Forget items whose caller is gone, and refuse those whose deadline has passed."""
        now = time.monotonic()
        before = len(lane.waiting)
        for item in lane.waiting:
            if now >= item.deadline:
                _refuse(item, Overloaded("no place came free before the deadline", headers={"Retry-After": "1"}))
        if any(item.future.done() for item in lane.waiting):
            lane.waiting = deque(item for item in lane.waiting if not item.future.done())
            self._waiting -= before - len(lane.waiting)

    def _look_again(self, when: float) -> None:
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(max(0.0, when - time.monotonic()), self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        self._pump()

    def _start(self, lane: Lane[T, R], batch: list[_Item[T, R]]) -> None:
        self._running += 1
        self._waiting -= len(batch)
        loop = asyncio.get_running_loop()
        started = time.monotonic()

        def work() -> None:
            outcome: Sequence[R | PalisadeError] | None = None
            try:
                outcome = lane.run([item.value for item in batch])
            except PalisadeError as error:  # what every image of the batch has met: none of them is run again
                outcome = [error] * len(batch)
            except Exception:
                log.exception("a batch of %d failed", len(batch))
            loop.call_soon_threadsafe(self._finish, lane, batch, outcome, started, time.monotonic() - started)

        self._pool.submit(work)
        metrics.batch_size.observe(len(batch))  # while it runs

    def _finish(
        self,
        lane: Lane[T, R],
        batch: list[_Item[T, R]],
        outcome: Sequence[R | PalisadeError] | None,
        started: float,
        ran: float,
    ) -> None:
        self._running -= 1
        self._measured = time.monotonic()
        pace = ran / (len(batch) * lane.cost)
        answered = outcome is not None and not all(isinstance(value, PalisadeError) for value in outcome)
        # A failure at once, as of an upstream that is gone, says nothing of the work; a long one holds its thread.
        if answered or 0 < self._item_seconds < pace:
            self._item_seconds = pace if not self._item_seconds else 0.9 * self._item_seconds + 0.1 * pace
        if outcome is not None and len(outcome) == len(batch):
            for item, value in zip(batch, outcome, strict=True):
                if isinstance(value, PalisadeError):
                    _refuse(item, value)
                elif not item.future.done():
                    item.future.set_result(Done(value, started - item.queued, ran))
        elif len(batch) == 1:
            _refuse(batch[0], EngineError("unexpected failure; the log has the reason"))
        else:
            # One item failed the batch: each runs again by itself, so that the others get their answers.
            for item in reversed(batch):
                item.alone = True
                self._put(lane, item, first=True)
        self._pump()


def _refuse(item: _Item[Any, Any], error: PalisadeError) -> None:
    if not item.future.done():
        item.future.set_exception(error)
