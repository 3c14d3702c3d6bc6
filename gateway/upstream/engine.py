"""The engine of `palisade guard`: graphs without a network here, the network's passes in another server."""

from __future__ import annotations

import logging
import threading
import time
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gateway.core.engine import Engine, open_session
from gateway.core.manifest import BUCKETS, InputSpec, Part
from gateway.core.outputs import FullOutputs, PartOutputs, VerdictOutputs
from gateway.core.upstream import UPSTREAM_FILES
from gateway.errors import BundleError, PalisadeError, UpstreamInvalid
from gateway.telemetry import metrics
from gateway.upstream.peer import Classifier

log = logging.getLogger(__name__)

_PARTS: tuple[Part, ...] = ("verdict", "full")


class UpstreamEngine(Engine):
    """`Engine` on an upstream: the rows of a batch of images are one batch of the upstream.

    The rows of an image are itself, its reference views, itself through a median filter, and itself with the most
    suspicious window inpainted; an explanation takes further rows with one place of the image blurred in each.
    """

    def __init__(
        self,
        folder: Path,
        spec: InputSpec,
        classifier: Classifier,
        *,
        threads: int = 0,
        buckets: Sequence[int] = BUCKETS,
    ) -> None:
        """Open the graphs in `folder`; the upstream is not asked yet. Raises `BundleError` naming the file."""
        super().__init__(folder, {}, spec, threads=threads, buckets=buckets)
        self.classifier = classifier
        self._rows, self._judge, self._perturb, self._explain = (
            _Graph(folder / file, self.threads) for file in UPSTREAM_FILES
        )
        self._problem: str | None = "it has not been asked yet"

    @property
    def parts(self) -> tuple[Part, ...]:
        return _PARTS

    def sizes(self, part: Part) -> tuple[int, ...]:
        # Each explanation has a request of its own: in a batch of many the first would wait for the last, and so would
        # every other image for the thread.
        return (1,) if part == "full" else super().sizes(part)

    @property
    def providers(self) -> tuple[str, ...]:
        return self._rows.providers

    @property
    def problem(self) -> str | None:
        return self._problem

    def failure(self, model: str) -> PalisadeError:
        return UpstreamInvalid(f"{model}: the upstream gave numbers that are not finite")

    def warm_up(self) -> float:
        """Run the graphs at every bucket once, on made-up answers, and `check` the upstream, which may be away.

        Seconds that the graphs took. Raises `BundleError` if a graph does not fit the manifest.
        """
        start, upstream = time.perf_counter(), self.classifier.upstream
        for n in self.buckets:
            pixels = np.full((n, *self._shape), 0.5, np.float32)
            rows, *_ = found = self._rows.run(pixels, self._mask(None, n))
            if rows.shape != (n, upstream.rows, *self._shape):
                raise BundleError(f"{self._rows.path}: gives rows of shape {rows.shape} for a batch of {n}")
            self._judge.run(np.zeros((n, upstream.rows, len(upstream.probe)), np.float32), found[1])
        maps = self._perturb.run(pixels[:1])[0]
        if maps.shape != (1, upstream.maps, *self._shape):
            raise BundleError(f"{self._perturb.path}: gives rows of shape {maps.shape}")
        self._explain.run(*(np.zeros((1, k, len(upstream.probe)), np.float32) for k in (upstream.rows, upstream.maps)))
        seconds = time.perf_counter() - start
        self.check()
        return seconds

    def check(self) -> None:
        """Ask the upstream for its answer to `probe_image`, and keep what is wrong with it as `problem`."""
        channels, height, width = self._shape
        try:
            self.classifier.probe(channels=channels, height=height, width=width)
        except PalisadeError as error:
            if error.detail != self._problem:
                log.warning("upstream: %s", error.detail)
            self._problem = error.detail
        except Exception:
            # Not foreseen; but without this thread nobody would ask again.
            log.exception("upstream: the check failed")
            self._problem = "the upstream could not be checked; the log has the reason"
        else:
            if self._problem is not None:
                log.info("upstream: %s answers", self.classifier.url)
            self._problem = None

    def watch(self, model: str, *, seconds: float) -> None:
        """`check` every so many seconds in a thread that ends with this engine."""
        reference = weakref.ref(self)
        threading.Thread(target=_watch, args=(reference, model, seconds), name="palisade-upstream", daemon=True).start()

    def _outputs(self, part: Part, pixels: np.ndarray, mask: np.ndarray | None) -> PartOutputs:
        n = len(pixels)
        rows, roa, roa_score, *_ = self._rows.run(pixels, self._mask(mask, n))
        flat = self.classifier.logits(rows.reshape(-1, *self._shape))
        logits = flat.reshape(n, rows.shape[1], -1)
        scores, roi = self._judge.run(logits, roa)
        made: dict[str, Any] = {
            "logits": logits[:, 0],
            "roi": roi,
            "roa": roa,
            "roa_score": roa_score,
            "neutral_pixels": rows[:, 0],
            "layer_deviation": np.zeros((n, 0), np.float32),
            "scores": scores,
        }
        if part == "verdict":
            return VerdictOutputs(**made)
        saliency = [self._saliency(rows[i : i + 1, 0], logits[i : i + 1]) for i in range(n)]
        return FullOutputs(**made, saliency=np.concatenate(saliency))

    def _answers(self, pixels: np.ndarray, mask: np.ndarray) -> np.ndarray:
        rows, *_ = self._rows.run(pixels, mask)
        return self.classifier.logits(np.ascontiguousarray(rows[:, 0]))

    def _saliency(self, pixels: np.ndarray, logits: np.ndarray) -> np.ndarray:
        """The map (1, H, W) of one image: its rows are many, so that images are not batched."""
        (perturbed,) = self._perturb.run(pixels)
        found = self.classifier.logits(perturbed[0])
        return self._explain.run(logits, found[None])[0]

    @property
    def _shape(self) -> tuple[int, int, int]:
        return self.spec.channels, self.spec.height, self.spec.width


class _Graph:
    """A session whose inputs are given by position."""

    def __init__(self, path: Path, threads: int) -> None:
        self.path = path
        self._session = open_session(path, "cpu", threads)
        self._inputs = [node.name for node in self._session.get_inputs()]

    @property
    def providers(self) -> tuple[str, ...]:
        return tuple(self._session.get_providers())

    def run(self, *inputs: np.ndarray) -> list[np.ndarray]:
        """Its outputs; `BundleError` where the graph takes other inputs."""
        try:
            return list(self._session.run(None, dict(zip(self._inputs, inputs, strict=True))))
        except Exception as error:  # noqa: BLE001  # ONNX Runtime has a class of its own for each of its status codes
            raise BundleError(f"{self.path}: {' '.join(str(error).split())[:300]}") from None


def _watch(reference: weakref.ref[UpstreamEngine], model: str, seconds: float) -> None:
    while True:
        time.sleep(seconds)
        engine = reference()
        if engine is None:
            return
        engine.check()
        metrics.checked(engine, model)
        del engine
