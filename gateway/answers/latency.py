"""When an answer is sent at disclosure `label`: its time must not disclose more than the label does."""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import Callable

from gateway.access.keys import Disclosure
from gateway.core.decision import Decision

# The slowest path (screen, verdict, verdict of the neutralised image) in terms of each path, by forwards, rounded up;
# where a policy certifies every image, each of these paths with all masks, of which there are at least nine.
_SLOWEST = {"screen": 8.0, "verdict": 2.0, "neutralized": 1.0, "certified": 2.0}


_MARGIN = 1.25


_QUANTILE = 0.99


_RECENT = 256


_REMEMBERED = 60.0
"""Seconds for which a time counts: a machine that was busy, or a first image, must not slow answers for good."""


class LatencyQuantum:
    """Releases answers at whole multiples of a quantum that the slowest path's time fits into.

    The quantum is `floor`, doubled until a high quantile of each path's recent times, and the work that the slowest
    path has more, fit with a margin; it is the process's, moved by all traffic and not by one request. What takes
    longer than one quantum goes out at the next multiple. A path that was not taken lately is known by the others.
    """

    def __init__(self, floor: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._floor = floor
        self._clock = clock
        self._recent = {path: deque[tuple[float, float]](maxlen=_RECENT) for path in _SLOWEST}
        self._bounds = dict.fromkeys(_SLOWEST, 0.0)
        self.seconds = floor

    def observe(self, decision: Decision, elapsed: float) -> None:
        """Take note of a decision (without an explanation) that took `elapsed` seconds.

        Certificates count where all of their masks were run, as for every answer at disclosure `label`.
        """
        found = decision.certificate
        if found is not None:
            if found.complete:
                self.note("certified", elapsed)
            return
        self.note("neutralized" if decision.neutralized is not None else decision.stage, elapsed)

    def note(self, path: str, elapsed: float) -> None:
        """Take note of the time of one path: `screen`, `verdict` or `neutralized`."""
        now = self._clock()
        self._recent[path].append((now, elapsed))
        for each, times in self._recent.items():
            forgotten = False
            while times and now - times[0][0] > _REMEMBERED:
                times.popleft()
                forgotten = True
            if forgotten or each == path:
                self._bounds[each] = _bound(each, [elapsed for _, elapsed in times])
        doublings = math.ceil(math.log2(max(1.0, max(self._bounds.values()) / self._floor)))
        self.seconds = self._floor * 2.0**doublings

    def wait(self, elapsed: float, images: int = 1) -> float:
        """Seconds from now until the answer to a request of `images` that took `elapsed` so far is released.

        A batch waits for multiples of as many quanta: otherwise many copies of an image would add up what one hides.
        """
        step = images * self.seconds
        return math.ceil(elapsed / step) * step - elapsed

    async def release(self, start: float, disclosure: Disclosure, images: int = 1) -> None:
        """At `label`, wait until an answer that was begun at `start` (`time.perf_counter`) and is ready may go out."""
        if disclosure == "label":
            await asyncio.sleep(self.wait(time.perf_counter() - start, images))


def _bound(path: str, times: list[float]) -> float:
    """The time that the slowest path takes, by recent times of this one; 0 for none."""
    if not times:
        return 0.0
    ordered = sorted(times)
    high, median = ordered[math.ceil(_QUANTILE * len(times)) - 1], ordered[len(times) // 2]
    # What the slowest path takes more is work, not waiting for others.
    return _MARGIN * (high + (_SLOWEST[path] - 1.0) * median)
