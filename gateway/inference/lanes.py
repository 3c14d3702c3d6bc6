"""Lanes of the micro-batcher: passes that may share a batch are those of one pipeline, one part and one calibration."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import replace
from typing import Any, TypeVar
from weakref import WeakKeyDictionary, ref

from gateway.core.certificate import CertificateWanted
from gateway.core.decision import Decision, Pass, Timing
from gateway.core.manifest import Part
from gateway.core.pipeline import Pipeline, Question, Reply, Work
from gateway.errors import EngineError, PalisadeError
from gateway.inference.batching import Lane, MicroBatcher

T = TypeVar("T")
R = TypeVar("R")
S = TypeVar("S")
MASKED_COST = 1 / 6
"""Of a masked forward pass, in terms of a verdict, which is six of them (docs/architecture.md, "Defence graph")."""
_FEW = 8
_PipelineLanes = dict[tuple[Part, bool], Lane[Work, Pass]]


class Lanes:
    """Runs the passes that images ask for in one micro-batcher; a pipeline's lanes end with the pipeline."""

    def __init__(self, batcher: MicroBatcher) -> None:
        self._batcher = batcher
        self._of: WeakKeyDictionary[Pipeline, _PipelineLanes] = WeakKeyDictionary()
        self._asked_lanes: WeakKeyDictionary[Pipeline, dict[type[Any], Lane[Any, Any]]] = WeakKeyDictionary()
        """Of masked images and of proofs, which do not share batches."""

    async def run(
        self,
        pipeline: Pipeline,
        steps: Generator[Work, Pass, Decision],
        *,
        deadline: float = math.inf,
        decode_seconds: float = 0.0,
    ) -> Decision:
        """The decision that `steps` (`Pipeline.steps`) returns, with every pass run in batches shared with others.

        Raises `EngineError`, and `Overloaded` when a pass does not start before `deadline` (`time.monotonic`).
        """
        queue = engine = 0.0
        work = next(steps)
        while True:
            done = await self._batcher.submit(self._lane(pipeline, work), work, deadline=deadline)
            queue, engine = queue + done.queued, engine + done.ran
            try:
                work = steps.send(done.value)
            except StopIteration as stop:
                decision: Decision = stop.value
                return replace(decision, timing=Timing(decode_seconds, queue, engine))

    async def certify(
        self, pipeline: Pipeline, decision: Decision, wanted: CertificateWanted, *, deadline: float = math.inf
    ) -> Decision:
        """The decision with its certificate, its masked images in batches shared with others; raises as `run` does."""
        made, timing = await self._asked(pipeline, pipeline.certifying(decision, wanted), decision.timing, deadline)
        return replace(decision, certificate=made, required=wanted.require, timing=timing)

    async def consult(self, pipeline: Pipeline, decision: Decision, *, deadline: float = math.inf) -> Decision:
        """The decision once votes and pool were heard, where they are to be (`Pipeline.consulting`); as `certify`."""
        heard, timing = await self._asked(pipeline, pipeline.consulting(decision), decision.timing, deadline)
        return replace(heard, timing=timing)

    async def _asked(
        self,
        pipeline: Pipeline,
        steps: Generator[Question, Reply, S],
        timing: Timing,
        deadline: float,
    ) -> tuple[S, Timing]:
        """What `steps` returns, with `timing` and what the masked images took."""
        try:
            asked = next(steps)
            while True:
                start = time.monotonic()
                lane = self._asked_lane(pipeline, type(asked[0]))
                done = await self._batcher.submit_all(lane, asked, deadline=deadline)
                waited, ran = time.monotonic() - start, max(each.ran for each in done)
                timing = replace(timing, queue=timing.queue + waited - ran, engine=timing.engine + ran)
                asked = steps.send([each.value for each in done])
        except StopIteration as stop:
            result: S = stop.value
            return result, timing

    def _asked_lane(self, pipeline: Pipeline, kind: type[Any]) -> Lane[Any, Any]:
        lanes = self._asked_lanes.setdefault(pipeline, {})
        if kind not in lanes:
            buckets = pipeline.engine.buckets
            # On the CPU larger batches are no faster, and other images would wait for them.
            few = tuple(size for size in buckets if size <= _FEW) or buckets[:1]
            sizes = few if pipeline.engine.provider == "cpu" else buckets
            lanes[kind] = Lane(_weakly(pipeline, _reply), sizes, MASKED_COST)
        return lanes[kind]

    def _lane(self, pipeline: Pipeline, work: Work) -> Lane[Work, Pass]:
        lanes = self._of.setdefault(pipeline, {})
        key = (work.part, work.composite)
        if key not in lanes:
            lanes[key] = Lane(_weakly(pipeline, _run), pipeline.engine.sizes(work.part))
        return lanes[key]


def _run(pipeline: Pipeline, batch: list[Work]) -> list[Pass | PalisadeError]:
    return pipeline.run(batch)


def _reply(pipeline: Pipeline, batch: list[Any]) -> Sequence[Any]:
    return pipeline.reply(batch)


def _weakly(
    pipeline: Pipeline, method: Callable[[Pipeline, list[T]], Sequence[R | PalisadeError]]
) -> Callable[[list[T]], Sequence[R | PalisadeError]]:
    """A method without a reference to the pipeline: a lane that held one would keep every version loaded."""
    reference = ref(pipeline)

    def run(batch: list[T]) -> Sequence[R | PalisadeError]:
        alive = reference()
        if alive is None:  # every caller is gone, and with them the last reference
            return [EngineError("the version was unloaded before the batch ran") for _ in batch]
        return method(alive, batch)

    return run
