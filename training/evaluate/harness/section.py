"""What units put into the card, as typed content: the base of their models, and the pieces that many of them have."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

Interval = tuple[float, float] | None
"""Ends of a 95 % bootstrap interval; None without images."""


class Section(BaseModel):
    """A part of the card. Its JSON has the keys that were set, under their aliases, and no others."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)

    def to_json(self) -> dict[str, Any]:
        content: dict[str, Any] = self.model_dump(mode="json", by_alias=True, exclude_unset=True)
        return content


class Effort(Section):
    """How hard the joint attacks try."""

    steps: int
    targets: int


class ByAlpha(Section):
    """A share at each of the served system's levels (`training.recipes.evaluation.ALPHAS`)."""

    at_1: float | None = Field(alias="alpha_0.01")
    at_5: float | None = Field(alias="alpha_0.05")


class RangedByAlpha(ByAlpha):
    """The same with intervals."""

    at_1_interval: Interval = Field(None, alias="alpha_0.01_interval")
    at_5_interval: Interval = Field(None, alias="alpha_0.05_interval")


class Flagged(Section):
    """Share of benign images flagged, by alpha."""

    at_1: float = Field(alias="0.01")
    at_5: float = Field(alias="0.05")
