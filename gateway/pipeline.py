"""Transport-free core: bytes in, `Decision` out (decode, defend, judge, neutralise, choose what is served)."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from gateway.bundle import Bundle
from gateway.decode import Limits, decode_image, to_pixels
from gateway.engine import Engine, GraphOutputs
from gateway.verdict import Judge, Verdict

Action = Literal["observe", "sanitize", "block"]
Region = Literal["roa", "roa_minus_roi"]


@dataclass(frozen=True)
class Prediction:
    """A class and its probability (softmax of the logits)."""

    index: int
    label: str
    probability: float


@dataclass(frozen=True)
class Pass:
    """One image through the defence graph: its outputs (a batch of one, axis N dropped) and verdict."""

    outputs: GraphOutputs
    probabilities: np.ndarray
    verdict: Verdict
    prediction: Prediction
    companion: Prediction | None


@dataclass(frozen=True)
class Neutralized:
    """The second pass: the region that was inpainted, mask (H, W) in {0, 1}, and what the graph says of the result."""

    region: Region
    mask: np.ndarray
    result: Pass

    @property
    def area(self) -> float:
        """Share of the image under the mask."""
        return float(self.mask.mean())


@dataclass(frozen=True)
class Timing:
    """Seconds by stage; `queue` is filled in by whoever queued the image."""

    decode: float
    engine: float
    queue: float = 0.0

    @property
    def total(self) -> float:
        return self.decode + self.engine + self.queue


@dataclass(frozen=True)
class Decision:
    """Everything that was found about one image, and which of the passes is served."""

    model: str
    version: str
    action: Action
    fused: tuple[str, ...]
    pixels: np.ndarray
    raw: Pass
    neutralized: Neutralized | None
    serve_neutralized: bool
    timing: Timing
    labels: tuple[str, ...]

    @property
    def served(self) -> Pass:
        """The pass whose prediction and explanation are served."""
        if self.serve_neutralized and self.neutralized is not None:
            return self.neutralized.result
        return self.raw

    @property
    def flagged(self) -> bool:
        """A recovered label never clears the flag: it is that of the input as it came."""
        return self.raw.verdict.flagged

    @property
    def blocked(self) -> bool:
        return self.flagged and self.action == "block"

    def queued(self, seconds: float) -> Decision:
        """The same decision with the time that the image waited."""
        return replace(self, timing=replace(self.timing, queue=seconds))

    @property
    def evidence(self) -> list[tuple[str, float]]:
        """The fused scores with their p-values, the strongest first."""
        p = self.raw.verdict.evidence
        return sorted(((name, p[name]) for name in self.fused), key=lambda item: item[1])

    @property
    def strongest_evidence(self) -> str:
        return self.evidence[0][0]

    def top(self, k: int) -> list[Prediction]:
        """The k most probable classes of the served pass."""
        return _ranked(self.served.probabilities, self.labels, k)


class Pipeline:
    """The defended answer of one bundle; safe to call from several threads."""

    def __init__(
        self, bundle: Bundle, engine: Engine, judge: Judge, *, action: Action | None = None, limits: Limits = Limits()
    ) -> None:
        self.bundle = bundle
        self.engine = engine
        self.judge = judge
        self.action: Action = action or bundle.manifest.policy.action
        self._limits = limits
        self._labels = tuple(bundle.manifest.classes)
        self.layer_band = judge.layer_band()

    def decide(self, data: bytes) -> Decision:
        """Decode and defend one image; raises the decoder's errors (`gateway.decode`) and `EngineError`."""
        start = time.perf_counter()
        image = decode_image(data, self.bundle.manifest.input, self._limits)
        return self.decide_image(image, decode_seconds=time.perf_counter() - start)

    def decide_image(self, image: np.ndarray, *, decode_seconds: float = 0.0) -> Decision:
        """Defend a decoded image, uint8 (H, W, C) at the network's size."""
        start = time.perf_counter()
        pixels = to_pixels(image)
        raw = self._pass(self.engine.run(pixels))
        neutralized = self._neutralize(pixels, raw)
        recovered = neutralized is not None and not neutralized.result.verdict.gated
        return Decision(
            model=self.bundle.name,
            version=self.bundle.version,
            action=self.action,
            fused=tuple(self.judge.calibration.fused),
            pixels=image,
            raw=raw,
            neutralized=neutralized,
            serve_neutralized=recovered and self.action == "sanitize",
            timing=Timing(decode=decode_seconds, engine=time.perf_counter() - start),
            labels=self._labels,
        )

    def _neutralize(self, pixels: np.ndarray, raw: Pass) -> Neutralized | None:
        """Inpaint what is suspected and look again; None when nothing is.

        When the gate is up the whole window goes, since a flagged, concentrated region of importance is itself the
        suspected attack; a window that is conspicuous alone loses only what the prediction doesn't rest on.
        """
        roa = raw.outputs.roa > 0.5
        region: Region
        if raw.verdict.gated:
            mask, region = roa, "roa"
        elif float(raw.outputs.roa_score) >= self.judge.calibration.roa_threshold:
            mask, region = roa & ~(raw.outputs.roi > 0.5), "roa_minus_roi"
        else:
            return None
        if not mask.any():
            return None
        result = self._pass(self.engine.run(pixels, mask[None]))
        return Neutralized(region=region, mask=mask, result=result)

    def _pass(self, batch: GraphOutputs) -> Pass:
        verdict = self.judge.judge(batch.scores, batch.layer_deviation)[0]
        outputs = batch.image(0)
        probabilities = softmax(outputs.logits)
        companion = None
        if outputs.companion_logits is not None:
            companion = _ranked(softmax(outputs.companion_logits), self._labels, 1)[0]
        return Pass(
            outputs=outputs,
            probabilities=probabilities,
            verdict=verdict,
            prediction=_ranked(probabilities, self._labels, 1)[0],
            companion=companion,
        )


def softmax(logits: np.ndarray) -> np.ndarray:
    """Probabilities (K,) of logits (K,), in float64."""
    shifted = np.exp(logits.astype(np.float64) - logits.max())
    return np.asarray(shifted / shifted.sum())


def _ranked(probabilities: np.ndarray, labels: tuple[str, ...], k: int) -> list[Prediction]:
    order = np.argsort(-probabilities, kind="stable")[:k]
    return [Prediction(index=int(i), label=labels[i], probability=float(probabilities[i])) for i in order]
