"""What was found about one image: predictions, verdict, regions, certificate, and which of the passes is served."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from gateway.core.certificate import Certificate, Wanted
from gateway.core.outputs import FullOutputs, PartOutputs, VerdictOutputs
from gateway.core.pool import Pooled
from gateway.core.verdict import Level, Verdict
from gateway.core.votes import Voted

Action = Literal["observe", "sanitize", "block"]
BlockFrom = Literal["flagged", "suspect"]
"""The level of a verdict from which the action `block` gives no answer."""
Region = Literal["roa", "roa_minus_roi"]
Stage = Literal["screen", "verdict"]


@dataclass(frozen=True)
class Prediction:
    """A class and its probability (softmax of the logits)."""

    index: int
    label: str
    probability: float


@dataclass(frozen=True)
class Pass:
    """One image through the defence graph: its outputs (a batch of one, axis N dropped) and verdict."""

    outputs: PartOutputs
    probabilities: np.ndarray
    verdict: Verdict
    prediction: Prediction
    companion: Prediction | None
    plain: bool = False
    """Whether the cascade's screen finds the image plainly benign (of passes of part `screen`)."""

    @property
    def whole(self) -> VerdictOutputs | None:
        """The outputs of a pass that came to a verdict; None of the screen's."""
        return self.outputs if isinstance(self.outputs, VerdictOutputs) else None


@dataclass(frozen=True)
class Explained:
    """The outputs that explain a decision: of the input as it came, of the served pass, of the inpainted image."""

    raw: FullOutputs
    served: FullOutputs
    neutral: FullOutputs | None


@dataclass(frozen=True)
class Neutralized:
    """The second pass: the region that was inpainted, mask (H, W) in {0, 1}, and the graph's outputs on the result."""

    region: Region
    mask: np.ndarray
    result: Pass

    @property
    def area(self) -> float:
        """Share of the image under the mask."""
        return float(self.mask.mean())


@dataclass(frozen=True)
class Timing:
    """Seconds by stage; `queue` is waiting for a batch, `engine` the batches that the image was in."""

    decode: float = 0.0
    queue: float = 0.0
    engine: float = 0.0

    @property
    def total(self) -> float:
        return self.decode + self.engine + self.queue


@dataclass(frozen=True)
class Decision:
    """Everything that was found about one image, and which of the passes is served.

    `stage` is `screen` when the cascade found the image plainly benign and ran no views. `audited` marks an image that
    the screen would have let through, but that was drawn for the whole verdict.
    """

    model: str
    version: str
    action: Action
    heard: tuple[str, ...]
    pixels: np.ndarray
    raw: Pass
    neutralized: Neutralized | None
    serve_neutralized: bool
    stage: Stage
    audited: bool
    timing: Timing
    labels: tuple[str, ...]
    certificate: Certificate | None = None
    voted: Voted | None = None
    """None where masks did not vote."""
    pooled: Pooled | None = None
    """The pool's opinion, where it is served in place of the first answer."""
    required: Wanted | None = None
    """The level of certificate below which the decision is not answered."""
    block_from: BlockFrom = "flagged"

    @property
    def shown(self) -> Pass:
        """The pass whose explanation is served: what the answering network said of the input, or of the second pass."""
        if self.serve_neutralized and self.neutralized is not None:
            return self.neutralized.result
        return self.raw

    @property
    def served(self) -> Pass:
        """That pass with the prediction that is served: its own, or the pool's."""
        if self.pooled is None:
            return self.shown
        p = self.pooled.probabilities
        return replace(self.shown, probabilities=p, prediction=ranked(p, self.labels, 1)[0])

    @property
    def explained(self) -> Explained:
        """What explains the decision; `ValueError` if it was made without an explanation."""
        done = self.neutralized
        neutral = None if done is None else _full(done.result)
        return Explained(_full(self.raw), _full(self.served), neutral)

    @property
    def flagged(self) -> bool:
        """A recovered label never clears the flag: it is that of the input as it came."""
        return self.raw.verdict.flagged

    @property
    def level(self) -> Level:
        """The level of the verdict on the input as it came."""
        return self.raw.verdict.level

    @property
    def blocked(self) -> bool:
        return self.action == "block" and self.level in ("flagged", self.block_from)

    @property
    def uncertified(self) -> bool:
        """Whether a certificate is required that the answer has not."""
        return self.required is not None and not (self.certificate and self.certificate.reaches(self.required))

    @property
    def withheld(self) -> bool:
        """Whether there is no answer."""
        return self.blocked or self.uncertified

    @property
    def evidence(self) -> list[tuple[str, float]]:
        """The scores that bear on the verdict with their p-values, the strongest first."""
        p = self.raw.verdict.evidence
        return sorted(((name, p[name]) for name in self.heard if name in p), key=lambda item: item[1])

    @property
    def strongest_evidence(self) -> str:
        return self.evidence[0][0]

    def top(self, k: int) -> list[Prediction]:
        """The k most probable classes of the served pass."""
        return ranked(self.served.probabilities, self.labels, k)


def _full(found: Pass) -> FullOutputs:
    if not isinstance(found.outputs, FullOutputs):
        raise ValueError("the decision was made without an explanation")  # noqa: TRY004  # of a value, not a type
    return found.outputs


def ranked(probabilities: np.ndarray, labels: tuple[str, ...], k: int) -> list[Prediction]:
    """The k most probable of the classes named `labels`, the first of equal ones first."""
    order = np.argsort(-probabilities, kind="stable")[:k]
    return [Prediction(index=int(i), label=labels[i], probability=float(probabilities[i])) for i in order]
