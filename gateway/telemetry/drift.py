"""Whether a calibration still fits the traffic: bets against it on the p-values of a random share of all requests.

Each bet is on one event, such as p <= 0.1. If the calibration fits, its probability r is about 0.1: exactly so on
average over calibrations, and for one calibration below an upper bound that its number of independent images gives
(Chernoff). A bettor who puts a share of his capital on the event at fair odds for that bound multiplies the capital by
1 + c (1 - r) / r where it happens and by 1 - c where not. The capital is then a supermartingale, and by Ville's
inequality ever exceeds 1 / delta with a probability of at most delta, however long it runs (Ville 1939; Vovk, Gammerman
and Shafer 2005, ch. 7; Waudby-Smith and Ramdas 2024, "Estimating means of bounded random variables by betting").
Several events and shares are bet on at once, with equal parts of the capital. After `EPOCH` p-values betting begins
anew, so that a change after a long quiet time is found as soon; the k-th beginning may err with delta / (k (k + 1)).
"""

from __future__ import annotations

import math
import random

from gateway.core.manifest import Calibration

DELTA = 0.01
"""Probability that a gateway ever raises a false alarm on a version; half is for calibrations beyond the bounds."""
EPOCH = 2000
BELOW = (0.05, 0.1, 0.2, 0.5)
ABOVE = (0.5, 0.8)
SHARES = (0.05, 0.1, 0.2, 0.4)
"""Of the capital that a bet puts at stake."""


class DriftWatch:
    """The bets on one version's p-values, in one worker; its state is a few dozen numbers."""

    def __init__(self, independent: float, *, delta: float = DELTA) -> None:
        """`independent` is how many independent benign images or groups the calibration is worth."""
        events = [(level, True) for level in BELOW] + [(level, False) for level in ABOVE]
        self._events = [
            (level, below, upper_bound(level if below else 1 - level, independent, delta / 2 / len(events)))
            for level, below in events
        ]
        self._log_delta = math.log(delta / 2)
        self._epoch = 1
        self._last = self._best = -math.inf
        self._begin()

    def note(self, p: float) -> None:
        """Bet on one p-value in (0, 1]."""
        for (level, below, rate), capital in zip(self._events, self._capital, strict=True):
            happened = (p <= level) == below
            for i, share in enumerate(SHARES):
                capital[i] += math.log1p(share * (1 - rate) / rate if happened else -share)
        self._best = max(self._best, self._now())
        self._count += 1
        if self._count == EPOCH:
            self._last, self._epoch = self._best, self._epoch + 1
            self._begin()

    @property
    def evidence(self) -> float:
        """log10 of the most capital of this epoch and the one before, over its limit: at 0 the calibration is refuted.

        After an alarm it falls back once an epoch has passed without another.
        """
        return max(self._best, self._last) / math.log(10)

    def _begin(self) -> None:
        self._count = 0
        self._capital = [[0.0] * len(SHARES) for _ in self._events]
        self._best = self._now()

    def _now(self) -> float:
        """Log of the capital over its limit."""
        logs = [value for capital in self._capital for value in capital]
        top = max(logs)
        mean = top + math.log(sum(math.exp(value - top) for value in logs) / len(logs))
        return mean + self._log_delta - math.log(self._epoch * (self._epoch + 1))


class DriftWatches:
    """The watches of all models served, each on its active version; a random share of images is looked at."""

    def __init__(self, share: float, *, workers: int = 1, seed: int | None = None) -> None:
        """`workers` watch at once, each with its part of `DELTA`."""
        self._share, self._delta = share, DELTA / workers
        # The process's own generator: the sender of an image can neither know nor choose whether it is drawn.
        self._random = random.Random(seed)
        self._watches: dict[str, tuple[str, DriftWatch]] = {}

    def note(self, model: str, version: str, calibration: Calibration, p: float) -> float | None:
        """Look at an image's p-value, if it is drawn: the evidence since the version was first seen, else None."""
        if self._random.random() >= self._share:
            return None
        known = self._watches.get(model)
        if known is None or known[0] != version:
            known = self._watches[model] = (version, DriftWatch(independent(calibration), delta=self._delta))
        known[1].note(p)
        return known[1].evidence


def independent(calibration: Calibration) -> float:
    """How many independent images or groups a calibration is worth."""
    return float(calibration.groups if calibration.counted == "groups" else calibration.n / calibration.design_effect)


def upper_bound(rate: float, independent_: float, delta: float) -> float:
    """The most, but for a probability `delta`, that the rate of an event may be whose share of so many is `rate`."""
    low, high = rate, 1.0 - 1e-9
    for _ in range(60):
        middle = (low + high) / 2
        divergence = rate * math.log(rate / middle) + (1 - rate) * math.log((1 - rate) / (1 - middle))
        low, high = (middle, high) if independent_ * divergence < -math.log(delta) else (low, middle)
    return high
