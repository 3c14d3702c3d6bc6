"""The micro-batcher with a fake engine: sizes, order, fairness, deadlines, cancellation, poison."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest

from gateway.errors import EngineError, Overloaded, PalisadeError
from gateway.inference.batching import Lane, MicroBatcher


class Engine:
    """Doubles numbers; holds every batch until `go` is set, and remembers what ran together."""

    def __init__(self, *, poison: int | None = None) -> None:
        self.batches: list[list[int]] = []
        self.go = threading.Event()
        self.go.set()
        self.poison = poison

    def run(self, items: list[int]) -> list[int | PalisadeError]:
        self.go.wait(5)
        self.batches.append(list(items))
        if self.poison in items:
            raise RuntimeError("poisoned")
        return [EngineError("negative") if item < 0 else 2 * item for item in items]


@pytest.fixture
def batcher() -> Iterator[MicroBatcher]:
    one = MicroBatcher(in_flight=1, window=0.0)
    yield one
    one.close()


def run(job: Callable[[], Awaitable[Any]]) -> Any:
    async def main() -> Any:
        return await asyncio.wait_for(job(), 10)

    return asyncio.run(main())


async def fill(batcher: MicroBatcher, lane: Lane[int, int], items: list[int], **options: Any) -> list[Any]:
    jobs = [asyncio.ensure_future(batcher.submit(lane, item, **options)) for item in items]
    return [
        done if isinstance(done, BaseException) else done.value
        for done in await asyncio.gather(*jobs, return_exceptions=True)
    ]


def test_everybody_gets_their_own_answer_in_buckets(batcher: MicroBatcher) -> None:
    engine = Engine()
    lane: Lane[int, int] = Lane(engine.run, (1, 2, 4))
    engine.go.clear()

    async def job() -> list[Any]:
        answers = asyncio.ensure_future(fill(batcher, lane, list(range(8))))
        await asyncio.sleep(0.05)
        assert batcher.waiting == 7
        engine.go.set()
        return await answers

    assert run(job) == [0, 2, 4, 6, 8, 10, 12, 14]
    assert [len(batch) for batch in engine.batches] == [1, 4, 2, 1]
    assert [item for batch in engine.batches for item in batch] == list(range(8))
    assert batcher.waiting == 0


def test_an_idle_engine_starts_at_once_whatever_the_window() -> None:
    batcher = MicroBatcher(in_flight=1, window=30.0)
    assert run(lambda: fill(batcher, Lane(Engine().run), [3])) == [6]
    batcher.close()


def test_while_another_batch_runs_items_gather_for_the_window() -> None:
    batcher = MicroBatcher(in_flight=2, window=0.2)
    engine = Engine()
    engine.go.clear()
    lane: Lane[int, int] = Lane(engine.run)

    async def job() -> list[Any]:
        first = asyncio.ensure_future(fill(batcher, lane, [1]))
        await asyncio.sleep(0.02)
        second = asyncio.ensure_future(fill(batcher, lane, [2]))
        await asyncio.sleep(0.02)
        third = asyncio.ensure_future(fill(batcher, lane, [3]))
        await asyncio.sleep(0.3)
        engine.go.set()
        return await first + await second + await third

    assert run(job) == [2, 4, 6]
    assert sorted(engine.batches) == [[1], [2, 3]]
    batcher.close()


def test_a_poisoned_item_fails_alone(batcher: MicroBatcher) -> None:
    engine = Engine(poison=2)
    lane: Lane[int, int] = Lane(engine.run)
    engine.go.clear()

    async def job() -> list[Any]:
        answers = asyncio.ensure_future(fill(batcher, lane, [0, 1, 2, 3, 4]))
        await asyncio.sleep(0.05)
        engine.go.set()
        return await answers

    answers = run(job)
    assert isinstance(answers[2], EngineError)
    assert [answers[i] for i in (0, 1, 3, 4)] == [0, 2, 6, 8]


def test_an_error_of_one_item_leaves_the_batch_alone(batcher: MicroBatcher) -> None:
    answers = run(lambda: fill(batcher, Lane(Engine().run), [1, -1, 2]))
    assert isinstance(answers[1], EngineError)
    assert (answers[0], answers[2]) == (2, 4)


def test_past_the_deadline_an_item_is_refused_and_never_run(batcher: MicroBatcher) -> None:
    engine = Engine()
    lane: Lane[int, int] = Lane(engine.run)
    engine.go.clear()

    async def job() -> list[Any]:
        running = asyncio.ensure_future(fill(batcher, lane, [1]))
        await asyncio.sleep(0.02)
        late = asyncio.ensure_future(fill(batcher, lane, [2], deadline=time.monotonic() + 0.05))
        await asyncio.sleep(0.1)
        engine.go.set()
        return await running + await late

    answers = run(job)
    assert answers[0] == 2
    assert isinstance(answers[1], Overloaded)
    assert answers[1].headers["Retry-After"]
    assert engine.batches == [[1]]


def test_an_item_whose_caller_is_gone_is_dropped(batcher: MicroBatcher) -> None:
    engine = Engine()
    lane: Lane[int, int] = Lane(engine.run)
    engine.go.clear()

    async def job() -> list[Any]:
        running = asyncio.ensure_future(fill(batcher, lane, [1]))
        await asyncio.sleep(0.02)
        gone = asyncio.ensure_future(batcher.submit(lane, 2))
        await asyncio.sleep(0.02)
        gone.cancel()
        stays = asyncio.ensure_future(fill(batcher, lane, [3]))
        await asyncio.sleep(0.02)
        engine.go.set()
        return await running + await stays

    assert run(job) == [2, 6]
    assert engine.batches == [[1], [3]]


def test_lanes_take_turns(batcher: MicroBatcher) -> None:
    order: list[str] = []

    def named(name: str) -> Lane[int, int]:
        def work(items: list[int]) -> list[int]:
            time.sleep(0.005)
            order.append(name)
            return items

        return Lane(work, (1,))

    busy, quiet = named("busy"), named("quiet")

    async def job() -> None:
        await asyncio.gather(fill(batcher, busy, list(range(20))), fill(batcher, quiet, [1]))

    run(job)
    assert order.index("quiet") <= 2


def test_the_expected_wait_follows_queue_and_pace(batcher: MicroBatcher) -> None:
    engine = Engine()

    def slow(items: list[int]) -> list[int | PalisadeError]:
        time.sleep(0.02 * len(items))
        return engine.run(items)

    lane: Lane[int, int] = Lane(slow)

    async def job() -> tuple[float, float]:
        await fill(batcher, lane, [1, 2, 3, 4])
        idle = batcher.expected_wait()
        rest = asyncio.ensure_future(fill(batcher, lane, list(range(11))))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        waiting = batcher.expected_wait()
        await rest
        return idle, waiting

    idle, waiting = run(job)
    assert idle == 0.0
    assert 0.1 < waiting < 1.0


def test_failures_at_once_do_not_make_the_pace_a_fast_one(batcher: MicroBatcher) -> None:
    seconds, failing = 0.1, False

    def work(items: list[int]) -> list[int | PalisadeError]:
        time.sleep(seconds)
        if failing:
            raise EngineError("gone")
        return list(items)

    lane: Lane[int, int] = Lane(work)
    run(lambda: fill(batcher, lane, [1]))
    pace = batcher.pace
    assert pace >= 0.1
    seconds, failing = 0.0, True
    for _ in range(20):
        run(lambda: fill(batcher, lane, [1]))
    assert batcher.pace == pace
    seconds = 0.3  # but such a one holds a thread
    run(lambda: fill(batcher, lane, [1]))
    assert batcher.pace > pace


def test_items_fewer_than_the_least_size_run_as_they_are(batcher: MicroBatcher) -> None:
    engine = Engine()
    assert run(lambda: fill(batcher, Lane(engine.run, (4, 8)), [1, 2, 3])) == [2, 4, 6]
    assert sum(map(len, engine.batches)) == 3
