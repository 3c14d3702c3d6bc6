"""Shadow mode: a second version is scored on the images that the active one answered, and only counted."""

from __future__ import annotations

import logging
import os
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Literal

import numpy as np

from gateway.core.decision import Decision
from gateway.core.pipeline import Pipeline
from gateway.inference.batching import MicroBatcher
from gateway.telemetry import metrics
from gateway.versions.registry import Registry

log = logging.getLogger(__name__)

Agreement = Literal["same", "label_differs", "flag_differs", "both_differ"]
# Images that may wait; each is at the network's size, so that this also bounds memory.
_WAITING = 4
_NICE = 19


class Shadow:
    """Scores images in one thread of the lowest priority, beside the batches of real traffic and never in them."""

    def __init__(self, registry: Registry, batcher: MicroBatcher) -> None:
        self._registry = registry
        self._batcher = batcher
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="palisade-shadow", initializer=_yield_to_others)
        self._waiting = threading.Semaphore(_WAITING)

    def offer(self, pipeline: Pipeline, image: np.ndarray, decision: Decision) -> None:
        """Queue an image that `pipeline` decided on for its shadow, if there is one; returns at once.

        It is dropped, and counted as such, while real traffic waits for a batch or earlier images wait here.
        """
        shadow = self._registry.shadow_of(pipeline)
        if shadow is None:
            return
        if self._batcher.waiting or not self._waiting.acquire(blocking=False):
            _count(shadow, "dropped")
            return
        self._thread.submit(self._score, shadow, image, decision)

    def close(self) -> None:
        """Drop the images that wait, and let the one that is being scored finish."""
        self._thread.shutdown(wait=True, cancel_futures=True)

    def _score(self, shadow: Pipeline, image: np.ndarray, decision: Decision) -> None:
        try:
            (scored,) = shadow.decide_images([image], explain=False)
            _count(shadow, agreement(decision, scored))
        except Exception:
            log.exception("shadow %s %s failed on an image", shadow.bundle.name, shadow.bundle.version)
            _count(shadow, "failed")
        finally:
            self._waiting.release()


def agreement(decision: Decision, shadow: Decision) -> Agreement:
    """How two versions' decisions on one image compare: the labels served, and the flags."""
    label = decision.served.prediction.label != shadow.served.prediction.label
    flag = decision.flagged != shadow.flagged
    if label and flag:
        return "both_differ"
    return "label_differs" if label else "flag_differs" if flag else "same"


def _count(shadow: Pipeline, outcome: Agreement | Literal["dropped", "failed"]) -> None:
    metrics.shadow_total.labels(shadow.bundle.name, shadow.bundle.version, outcome).inc()


def _yield_to_others() -> None:
    if sys.platform == "linux":  # where priority is each thread's own
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICE)
