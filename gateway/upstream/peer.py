"""The upstream's classifier: rows to logits, with circuit breaker, bounds, checks and metrics."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from typing import Protocol

import numpy as np

from gateway.core.upstream import PlainHttp, Upstream, probe_image
from gateway.errors import PalisadeError, UpstreamInvalid, UpstreamUnavailable
from gateway.telemetry import metrics
from gateway.upstream.breaker import Breaker
from gateway.upstream.connection import Connection
from gateway.upstream.plain import PlainPeer
from gateway.upstream.protocol2 import Protocol2Peer

# Probabilities of the same model on other hardware differ by less; those of other weights by far more.
PROBE_TOLERANCE = 0.02
_CHECK_SECONDS = 2.0
# float32's smallest: a probability of zero is one that was rounded to it.
_LEAST = 1.2e-38
_OTHER = "the upstream does not serve the model that was calibrated: run `palisade guard calibrate` again"


class Peer(Protocol):
    """A way to ask for the numbers (M, K) of rows (M, C, H, W)."""

    def values(self, rows: np.ndarray, *, deadline: float) -> np.ndarray: ...


class Classifier:
    """The network that the upstream serves, as a function of rows; used from several threads."""

    def __init__(
        self,
        upstream: Upstream,
        classes: Sequence[str],
        *,
        model: str,
        timeout: float,
        token: str | None = None,
        failures: int = 5,
        pause: float = 2.0,
    ) -> None:
        self.upstream = upstream
        self.url = upstream.protocol.url
        self.breaker = Breaker(failures=failures, pause=pause)
        self._classes = len(classes)
        self._model = model
        self._timeout = timeout
        self._other = False
        """Whether `probe` has last met another model than was calibrated."""
        self._checking, self._probing = threading.Lock(), threading.Lock()
        self._probed = 0
        """Connections that there were at the last probe that met the calibrated model, those since then left out."""
        self._connection = Connection(timeout=timeout, token=token)
        protocol = upstream.protocol
        self._peer: Peer = (
            PlainPeer(protocol, classes, self._connection)
            if isinstance(protocol, PlainHttp)
            else Protocol2Peer(protocol, self._connection)
        )

    def logits(self, rows: np.ndarray) -> np.ndarray:
        """Logits (M, K) of `rows` float32 (M, C, H, W) in [0, 1]; of probabilities their logarithms.

        A row for which the upstream gives no finite numbers is NaN. Raises `UpstreamUnavailable`, at once while the
        breaker is open, `UpstreamTimeout` when all of it takes longer than the timeout, and `UpstreamInvalid`, at once
        from a `probe` that meets another model until one that meets the calibrated one. A new connection may be one to
        a server that was restarted: answers are given out only after a `probe` of their own.
        """
        if self._other:
            raise UpstreamInvalid(_OTHER)
        made = self.unchecked(rows)
        if self._connection.new > self._probed:
            with self._probing:  # whoever waited here has the probe of the one before
                if self._connection.new > self._probed:
                    channels, height, width = rows.shape[1:]
                    self.probe(channels=channels, height=height, width=width)
        return made

    def unchecked(self, rows: np.ndarray) -> np.ndarray:
        """`logits`, of whatever model the upstream serves."""
        if not self.breaker.admit():
            wait = max(1, round(self.breaker.wait))
            raise UpstreamUnavailable(
                "the upstream has failed too often just now; it is tried again", headers={"Retry-After": str(wait)}
            )
        try:
            made = self._asked(rows, self._timeout)
        except PalisadeError as error:
            metrics.upstream_failures_total.labels(self._model, error.code).inc()
            self._failed(rows)
            raise
        except BaseException:
            self._count_failure()
            raise
        self.breaker.succeeded()
        return made

    def probe(self, *, channels: int, height: int, width: int) -> None:
        """Ask for the answer to `probe_image`; raises as `logits` does, and `UpstreamInvalid` if it is another one."""
        new = self._connection.new - self._connection.new_here
        logits = self.unchecked(probe_image(channels, height, width))[0].astype(np.float64)
        if not np.isfinite(logits).all():
            raise UpstreamInvalid("the upstream gave numbers that are not finite")
        found = np.exp(logits - np.logaddexp.reduce(logits))
        self._other = not np.abs(found - np.asarray(self.upstream.probe)).max() <= PROBE_TOLERANCE
        if self._other:
            raise UpstreamInvalid(_OTHER)
        self._probed = new + self._connection.new_here

    def close(self) -> None:
        """Close its connections."""
        self._connection.close()

    def _failed(self, rows: np.ndarray) -> None:
        """Count a failure; the breaker opens only if `probe_image` fails, too, since what was asked may be at fault."""
        if self.breaker.at_limit:
            with self._checking:  # whoever waited here finds out what the one before found
                if self.breaker.at_limit and self._answers(rows.shape[1:]):
                    self.breaker.succeeded()
                    return
        self._count_failure()

    def _count_failure(self) -> None:
        if self.breaker.failed():
            metrics.upstream_breaker_opened_total.labels(self._model).inc()

    def _answers(self, shape: tuple[int, ...]) -> bool:
        """Whether the upstream answers at all, within `_CHECK_SECONDS`."""
        channels, height, width = shape
        try:
            self._asked(probe_image(channels, height, width), min(self._timeout, _CHECK_SECONDS))
        except Exception:  # noqa: BLE001  # whatever it is, the failure has to be counted
            return False
        return True

    def _asked(self, rows: np.ndarray, timeout: float) -> np.ndarray:
        start = time.monotonic()
        prepared, most = self.upstream.normalise.apply(rows), self.upstream.max_rows
        parts = [
            self._peer.values(prepared[first : first + most], deadline=start + timeout)
            for first in range(0, len(rows), most)
        ]
        metrics.upstream_seconds.labels(self._model).observe(time.monotonic() - start)
        metrics.upstream_rows_total.labels(self._model).inc(len(rows))
        for part in parts:
            if part.shape[1] != self._classes:
                raise UpstreamInvalid(f"the upstream gave {part.shape[1]} classes, {self._classes} were calibrated")
        values = np.concatenate(parts)
        values[~np.isfinite(values).all(1)] = np.nan
        if self.upstream.values == "logits":
            return values
        if (values < -1e-3).any() or (values > 1 + 1e-3).any():
            raise UpstreamInvalid("the upstream gave probabilities outside 0 to 1")
        return np.asarray(np.log(np.maximum(values, np.float32(_LEAST))))
