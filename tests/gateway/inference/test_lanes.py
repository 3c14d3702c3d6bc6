from __future__ import annotations

import asyncio
import gc
import weakref
from pathlib import Path

from gateway.core.engine import Engine
from gateway.core.loading import load_bundle
from gateway.core.pipeline import Pipeline
from gateway.core.verdict import Judge
from gateway.inference.batching import MicroBatcher
from gateway.inference.lanes import Lanes
from tests.gateway.tiny import clean_image


def test_lanes_do_not_keep_an_unloaded_version(bundle_folder: Path) -> None:
    bundle = load_bundle(bundle_folder)
    engine = Engine.open(bundle, device="cpu")
    pipeline = Pipeline(bundle, engine, Judge(bundle, bundle.calibration("cpu")))
    gone = weakref.ref(pipeline)

    async def served(pipeline: Pipeline) -> Lanes:
        batcher = MicroBatcher()
        lanes = Lanes(batcher)
        steps = pipeline.steps(clean_image(), explain=False, screening="off")
        decision = await lanes.run(pipeline, steps)
        assert decision.served.prediction.label == "red"
        batcher.close()
        return lanes

    lanes = asyncio.run(served(pipeline))
    del pipeline
    gc.collect()
    assert gone() is None
    assert lanes
