"""Lanes of the micro-batcher: passes that may share a batch are those of one pipeline, one part and one calibration."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Sequence
from dataclasses import replace
from weakref import WeakKeyDictionary, ref

from gateway.core.manifest import Part
from gateway.core.pipeline import Decision, Pass, Pipeline, Timing, Work
from gateway.errors import EngineError, PalisadeError
from gateway.inference.batching import Lane, MicroBatcher

_PipelineLanes = dict[tuple[Part, bool], Lane[Work, Pass]]


class Lanes:
    """Runs the passes that images ask for in one micro-batcher; a pipeline's lanes end with the pipeline."""

    def __init__(self, batcher: MicroBatcher) -> None:
        self._batcher = batcher
        self._of: WeakKeyDictionary[Pipeline, _PipelineLanes] = WeakKeyDictionary()

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

    def _lane(self, pipeline: Pipeline, work: Work) -> Lane[Work, Pass]:
        lanes = self._of.setdefault(pipeline, {})
        key = (work.part, work.composite)
        if key not in lanes:
            lanes[key] = Lane(_weakly(pipeline), pipeline.engine.buckets)
        return lanes[key]


def _weakly(pipeline: Pipeline) -> Callable[[list[Work]], Sequence[Pass | PalisadeError]]:
    """`pipeline.run` without a reference to the pipeline: a lane that held one would keep every version loaded."""
    reference = ref(pipeline)

    def run(batch: list[Work]) -> Sequence[Pass | PalisadeError]:
        alive = reference()
        if alive is None:  # every caller is gone, and with them the last reference
            return [EngineError("the version was unloaded before the batch ran") for _ in batch]
        return alive.run(batch)

    return run
