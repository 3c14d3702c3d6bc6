"""Settings of the penalties that a training stage may add to its task loss (`training.loop.penalties`)."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from training.losses.input_gradient import STEP, Method


class Term(BaseModel):
    """What every penalty has: a weight, a linear ramp from 0 at the start of its stage, and a cadence.

    With `every` = k the term is computed in every k-th step alone, with k times its weight.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    weight: float = Field(gt=0)
    ramp_epochs: int = Field(0, ge=0)
    every: int = Field(1, ge=1)


class GradientTerm(Term):
    """A penalty of an input gradient: how it is differentiated (`training.losses.input_gradient`).

    `h` is the length of the finite difference, L2 in pixels of [0, 1].
    """

    method: Method = "finite_difference"
    h: float = Field(STEP, gt=0)


class Jacobian(GradientTerm):
    """`training.losses.jacobian`; the weight multiplies 1/2 ||J||_F^2 of pixels in [0, 1]."""


class Selective(GradientTerm):
    """`training.losses.selective`; M keeps `mass` of the teacher's perturbation saliency on a `grid` x `grid` map."""

    form: Literal["absolute", "ratio"] = "absolute"
    mass: float = Field(0.5, gt=0, lt=1)
    grid: int = Field(8, ge=2, le=64)


class Align(GradientTerm):
    """`training.losses.align`, with the teacher's perturbation saliency on a `grid` x `grid` map."""

    grid: int = Field(8, ge=2, le=64)


class Sns(Term):
    """`training.losses.sns`: share of each layer's neurons, and pairs of images that choose them.

    They are ranked at the start of the stage and again every `rerank_epochs` epochs of it.
    """

    share: float = Field(0.1, gt=0, le=1)
    pairs: int = Field(512, ge=16)
    rerank_epochs: int = Field(1, ge=1)


class Terms(BaseModel):
    """Penalties of a stage; `fraction` of each batch carries them."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    jacobian: Jacobian | None = None
    selective: Selective | None = None
    align: Align | None = None
    sns: Sns | None = None
    fraction: float = Field(0.5, gt=0, le=1)

    @model_validator(mode="after")
    def _one_grid(self) -> Terms:
        if self.selective and self.align and self.selective.grid != self.align.grid:
            raise ValueError("selective.grid and align.grid differ: both read the same maps of the teacher")
        return self

    @property
    def active(self) -> bool:
        return bool(self.jacobian or self.selective or self.align or self.sns)

    @property
    def grid(self) -> int | None:
        """Cells on a side of the teacher's maps; None where no term reads them."""
        reader = self.selective or self.align
        return reader.grid if reader else None
