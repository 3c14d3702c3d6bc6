"""Rules that a calibration may have beside its scores: kinds of anomaly, votes of masks, a pool of opinions."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class KindRule(_Strict):
    """A softmax regression over R `readings` of an image: ordinary, unfamiliar, attacked (`gateway.core.kinds`).

    `mean` and `std` are benign ones of the readings, `weights` (3, R) and `bias` (3,) those of the classes in that
    order. The benign log-odds of `n` images in `groups` groups are in the calibration's arrays `kinds` (n, 2) and
    `kind_weights` (n, 2).
    """

    readings: list[str] = Field(min_length=1)
    mean: list[float]
    std: list[Annotated[float, Field(gt=0)]]
    weights: list[list[float]] = Field(min_length=3, max_length=3)
    bias: list[float] = Field(min_length=3, max_length=3)
    n: int = Field(ge=20)
    groups: int = Field(ge=2)
    fitted: dict[str, int] = {}
    """Images that it was fitted on, by what they are; all made of the select split."""

    @model_validator(mode="after")
    def _sizes_agree(self) -> KindRule:
        if {len(self.mean), len(self.std), *map(len, self.weights)} != {len(self.readings)}:
            raise ValueError("mean, std and each row of weights have a number for each reading")
        return self


class VoteRule(_Strict):
    """Masks for a square patch of `patch` pixels a side, `masks_per_axis` an axis, that vote (`gateway.core.votes`).

    By the network of small fields the windows of its cells vote in the place of masks, of which each place has one.
    With `whole` it votes with nothing left out, too, and what that objection lacks to 1 counts `whole` of what it would
    of a window's: it says nothing of what a patch can do, but clean images meet it seldom.

    Of alpha half is theirs up to `gateway.core.votes.KNEE`, and `beyond` of the rest.

    The benign objections of `n` images in `groups` groups are in the calibration's arrays `votes` (n,) and
    `vote_weights` (n,).
    """

    patch: int = Field(ge=1)
    by: Literal["masks", "small_field"] = "masks"
    masks_per_axis: int | None = Field(None, ge=2, le=8)
    whole: float | None = Field(None, gt=0, le=1)
    beyond: float = Field(0.5, gt=0, lt=1)
    n: int = Field(ge=20)
    groups: int = Field(ge=2)

    @model_validator(mode="after")
    def _masks_stated(self) -> VoteRule:
        if (self.masks_per_axis is None) != (self.by == "small_field"):
            raise ValueError("masks_per_axis is of masks, and windows have none")
        if self.whole is not None and self.by == "masks":
            raise ValueError("whole is of the network of small fields")
        return self


class PoolRule(_Strict):
    """Weights of networks' probabilities in the pool that answers (`gateway.core.pool`).

    The best label of the pool is served in place of the first answer where it leads that by `threshold` or more, in
    probability of the pool. Without `small_field` the network of small fields is not asked. The threshold is that of
    `n` benign images in `groups` groups, of which the pool takes the share `harmed` of right answers away at most.
    """

    answering: float = Field(ge=0)
    companion: float = Field(gt=0)
    small_field: float | None = Field(None, gt=0)
    threshold: float = Field(ge=0, le=1)
    harmed: float = Field(ge=0, le=1)
    n: int = Field(ge=20)
    groups: int = Field(ge=2)
