"""From a request's bytes to its `Decision`: admission, decoding in bounded threads, the micro-batcher, one deadline."""

from __future__ import annotations

import asyncio
import math
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import TypeVar

import numpy as np

from gateway.core.certificate import CertificateWanted
from gateway.core.decision import Decision
from gateway.core.decode import is_quick
from gateway.core.pipeline import Pipeline, Screening
from gateway.errors import Overloaded
from gateway.inference.batching import MicroBatcher
from gateway.inference.lanes import MASKED_COST, Lanes
from gateway.inference.shadow import Shadow
from gateway.settings import Settings
from gateway.telemetry import metrics
from gateway.telemetry.drift import DriftWatches
from gateway.telemetry.tracing import trace_stages

T = TypeVar("T")
# Share of the deadline that the expected wait may take: the rest covers what the estimate leaves out.
_FULL = 0.35
Record = Callable[[Decision], Awaitable[object]]
"""Stores a decision for review; its place in the queue is taken before it first suspends."""


class Dispatcher:
    """Takes images of requests through decoding and pipeline; used from one event loop."""

    def __init__(self, settings: Settings) -> None:
        self.batcher = MicroBatcher(in_flight=settings.batches_in_flight, window=settings.batch_window)
        self._lanes = Lanes(self.batcher)
        self.shadow: Shadow | None = None
        self._threads = ThreadPoolExecutor(settings.decode_threads, thread_name_prefix="palisade-decode")
        self._places = settings.max_waiting + settings.decode_threads
        self._timeout = settings.request_timeout
        self._cascade, self._audit = settings.cascade, settings.cascade_audit
        self._drift = DriftWatches(settings.audit_sample, workers=settings.workers)
        self._images = 0
        self._work = 0.0
        self._abandoned = 0

    async def decide(
        self,
        pipeline: Pipeline,
        data: bytes,
        *,
        explain: bool,
        record: Record,
        certify: CertificateWanted | None = None,
    ) -> Decision:
        """Decode and defend one image, with a certificate on request; metrics are recorded whatever becomes of it.

        Raises the decoder's errors, `EngineError`, and `Overloaded` when no place is free, when the wait would outlast
        the deadline, or when the deadline passes.
        """
        async with self._admitted(_more(certify, pipeline)) as deadline:
            start = time.perf_counter()
            image = pipeline.decode(data) if is_quick(data) else await self.in_thread(lambda: pipeline.decode(data))
            decoded = time.perf_counter() - start
            decision = await self._defend(pipeline, image, deadline, certify, explain=explain, decode_seconds=decoded)
            await record(decision)
            return decision

    async def decide_image(
        self,
        pipeline: Pipeline,
        image: np.ndarray,
        *,
        explain: bool,
        record: Record,
        certify: CertificateWanted | None = None,
    ) -> Decision:
        """Defend a decoded image: uint8 (H, W, C), or float32 in [0, 1], at the network's size."""
        async with self._admitted(_more(certify, pipeline)) as deadline:
            decision = await self._defend(pipeline, image, deadline, certify, explain=explain, decode_seconds=0.0)
            await record(decision)
            return decision

    async def parse(self, job: Callable[[], T]) -> T:
        """Run `job`, which reads images out of a request's body, in the decoding threads; `Overloaded` as `decide`."""
        async with self._admitted():
            return await self.in_thread(job)

    def refusal(self, more: float = 0.0) -> Overloaded | None:
        """The error that another image would meet now; None if it would be admitted.

        `more` is its work beside the verdict, in verdicts: certificates and votes count with all of their passes.
        """
        images, pace = self._images + self._abandoned, self.batcher.pace
        wait = max(self.batcher.expected_wait(), (self._work + self._abandoned) * pace) + more * pace
        if images < self._places and wait < _FULL * self._timeout:
            return None
        if not images and self.batcher.pace_age > self._timeout:
            return None  # of a pace that is so old only an image can tell whether it still holds
        return Overloaded("too many images are waiting", headers={"Retry-After": str(max(1, math.ceil(wait)))})

    async def in_thread(self, job: Callable[[], T]) -> T:
        """Run `job` in the decoding threads; its place stays taken until the thread ends, also if the caller left."""
        future = self._threads.submit(job)
        try:
            return await asyncio.wrap_future(future)
        except asyncio.CancelledError:
            if future.running():
                self._abandoned += 1
                loop = asyncio.get_running_loop()
                future.add_done_callback(lambda _: loop.call_soon_threadsafe(self._done_at_last))
            raise

    def close(self) -> None:
        """Let images that are being processed finish."""
        self._threads.shutdown(wait=True, cancel_futures=True)
        self.batcher.close()
        if self.shadow is not None:
            self.shadow.close()

    async def _defend(
        self,
        pipeline: Pipeline,
        image: np.ndarray,
        deadline: float,
        certify: CertificateWanted | None,
        *,
        explain: bool,
        decode_seconds: float,
    ) -> Decision:
        screening: Screening = "off"
        if self._cascade:
            screening = "audit" if random.random() < self._audit else "on"
        steps = pipeline.steps(image, explain=explain, screening=screening)
        decision = await self._lanes.run(pipeline, steps, deadline=deadline, decode_seconds=decode_seconds)
        decision = await self._lanes.consult(pipeline, decision, deadline=deadline)
        if certify is not None and not decision.blocked:
            decision = await self._lanes.certify(pipeline, decision, certify, deadline=deadline)
        # After the answer, which goes out before this task waits again.
        asyncio.get_running_loop().call_soon(self._count, decision, pipeline)
        trace_stages(decision)
        if self.shadow is not None:
            self.shadow.offer(pipeline, image, decision)
        return decision

    @asynccontextmanager
    async def _admitted(self, more: float = 0.0) -> AsyncIterator[float]:
        """Hold a place and yield a deadline (`time.monotonic`); raises `Overloaded` at once when no place is free."""
        refused = self.refusal(more)
        if refused is not None:
            raise refused
        work = 1.0 + more
        self._images, self._work = self._images + 1, self._work + work
        deadline = time.monotonic() + self._timeout
        try:
            async with asyncio.timeout(self._timeout):
                yield deadline
        except TimeoutError:
            raise Overloaded(f"no answer within {self._timeout:g} s", headers={"Retry-After": "1"}) from None
        finally:
            self._images, self._work = self._images - 1, self._work - work

    def _count(self, decision: Decision, pipeline: Pipeline) -> None:
        metrics.observe(decision, pipeline)
        metrics.compare(decision, pipeline, self._drift)

    def _done_at_last(self) -> None:
        self._abandoned -= 1


def _more(certify: CertificateWanted | None, pipeline: Pipeline) -> float:
    """The work of a certificate and of votes, in passes of the part `verdict`."""
    votes = 0
    if pipeline.votes is not None:
        votes = len(pipeline.votes.masks) if pipeline.votes.by == "masks" else 1
    return (votes + (0 if certify is None else certify.forwards)) * MASKED_COST
