"""What every penalty of training is: settings in a recipe, and a function of one training step's context."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from pydantic import BaseModel, ConfigDict, Field
from torch import Generator, Tensor

from training.losses.input_gradient import STEP, Method, Probe, penalise
from training.util.signatures import Predict

Taps = dict[str, Tensor]


@dataclass(frozen=True)
class Context:
    """One training step, as penalties see it: the first `fraction` of the batch, in fp32, BatchNorm as an affine map.

    `x` (N, C, H, W) in [0, 1] requires a gradient; `logits` (N, K) and the activations `taps` by layer are those of
    `network` on `x`. `adversarial_taps` returns the activations on the adversarial images. `saliency` (N, H, W) is the
    teacher's, where a term has a `grid`; `sensitive` are the neurons by layer that a `NeuronTerm` asked for.
    """

    network: Predict
    x: Tensor
    y: Tensor
    logits: Tensor
    taps: Taps
    adversarial_taps: Callable[[], Taps]
    saliency: Tensor | None
    sensitive: dict[str, Tensor]
    generator: Generator


class Term(BaseModel):
    """A penalty's settings: a weight, a linear ramp from 0 at the start of its stage, and a cadence.

    With `every` = k the term is computed in every k-th step alone, with k times its weight. A term whose
    `needs_adversary` states why is refused in a stage of standard training.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    needs_adversary: ClassVar[str | None] = None

    weight: float = Field(gt=0)
    ramp_epochs: int = Field(0, ge=0)
    every: int = Field(1, ge=1)

    def penalty(self, context: Context) -> Tensor:
        """The penalty (scalar, fp32) without its weight; differentiable in the network's weights."""
        raise NotImplementedError


class GradientTerm(Term):
    """A penalty of an input gradient: how it is differentiated (`training.losses.input_gradient`).

    `h` is the length of the finite difference, L2 in pixels of [0, 1].
    """

    method: Method = "finite_difference"
    h: float = Field(STEP, gt=0)

    def probe(self, context: Context) -> Probe:
        """The score whose input gradient is penalised, and the form that is taken of that gradient."""
        raise NotImplementedError

    def penalty(self, context: Context) -> Tensor:
        probe = self.probe(context)
        return penalise(probe, context.network, context.x, context.logits, method=self.method, h=self.h)


class MapTerm(GradientTerm):
    """A penalty that reads the teacher's perturbation saliency on a `grid` x `grid` map (`Context.saliency`)."""

    grid: int = Field(8, ge=2, le=64)


class NeuronTerm(Term):
    """A penalty of each layer's most sensitive neurons (`Context.sensitive`): their share, and the pairs to rank by.

    They are ranked at the start of the stage and again every `rerank_epochs` epochs of it.
    """

    needs_adversary: ClassVar[str | None] = "neuron sensitivity is a property of clean/adversarial pairs"

    share: float = Field(0.1, gt=0, le=1)
    pairs: int = Field(512, ge=16)
    rerank_epochs: int = Field(1, ge=1)
