"""How much an evaluation measures, and the bounds that its headline figures have to keep."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

ALPHAS = (0.01, 0.05)
"""The served system's levels that cards report."""
RATES = (0.01, 0.05, 0.1)
"""Measured benign flag rates at which systems and scores are compared."""


class Bound(BaseModel):
    """A headline figure and what it must keep: `at_least` or `at_most` `bound`.

    Which figures there are is known to the units that measure them (`training.evaluate.units.known_figures`).
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    figure: str
    kind: Literal["at_least", "at_most"]
    bound: float = Field(allow_inf_nan=False)


class Evaluation(BaseModel):
    """How many test images each measurement uses (None: all; 0: none, where that is allowed), and how hard it tries.

    Attacks on the answering network use images that it answers rightly.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    seed: int = 0
    robust: int | None = Field(None, ge=1, description="PGD on the companion")
    steps: int = Field(50, ge=1, description="of PGD")
    autoattack: int = Field(1000, ge=0)
    control: int = Field(500, ge=1, description="PGD with restarts on the undefended network")
    curve: int = Field(500, ge=1, description="each radius of the security curve")
    shifts: int | None = Field(2000, ge=1, description="each benign shift")
    unaware: int = Field(1000, ge=1, description="attacks on the answering network")
    minimal: int = Field(300, ge=1, description="minimal-norm attacks")
    square: int = Field(200, ge=1)
    square_queries: int = Field(2000, ge=1)
    surrogate_epochs: int = Field(6, ge=1, description="of the two networks that transferred attacks are made on")
    patched: int = Field(300, ge=1, description="patches, unaware of the defence")
    certified: int | None = Field(None, ge=1, description="certificates against patches")
    small_field: int | None = Field(None, ge=1, description="certificates by the network of small fields")
    voted: int | None = Field(None, ge=1, description="votes of masks, where they are calibrated")
    adaptive: int = Field(200, ge=0, description="joint attacks; 0 leaves them out of a build's card")
    adaptive_steps: int = Field(60, ge=1)
    adaptive_targets: int = Field(5, ge=1)
    adaptive_restarts: int = Field(1, ge=1, description="starting points: the image, then random ones")
    doubled: int = Field(60, ge=1, description="joint attack at twice the steps")
    adaptive_patched: int = Field(100, ge=1, description="patches whose maker knows the defence")
    voted_patched: int = Field(100, ge=1, description="patches whose maker knows the defence and that masks vote")
    pooled: int = Field(100, ge=1, description="joint attacks by who knows that all networks answer together")
    harm: int = Field(200, ge=1, description="attacks that aim at neutralisation's harm")
    queried: int = Field(20, ge=1, description="attacks over HTTP, at each level of disclosure")
    queries: int = Field(2000, ge=1, description="of each of them, at most")
    explained: int = Field(200, ge=1)
    layered: int = Field(300, ge=1, description="heat maps of every layer")
    track_frames: int | None = Field(
        None, ge=2, description="frames of a track, where test images come in tracks that the data set does not name"
    )
    bounds: list[Bound] = []

    def capped(self, n: int | None) -> Evaluation:
        """These settings with no measurement on more than `n` images; None changes nothing."""
        if n is None:
            return self
        smaller: dict[str, Any] = {name: n for name in COUNTS if (own := getattr(self, name)) is None or own > n}
        return self.model_copy(update=smaller)


COUNTS = (
    "robust",
    "autoattack",
    "control",
    "curve",
    "shifts",
    "unaware",
    "minimal",
    "square",
    "patched",
    "certified",
    "voted",
    "adaptive",
    "doubled",
    "adaptive_patched",
    "voted_patched",
    "pooled",
    "harm",
    "queried",
    "explained",
    "layered",
)
