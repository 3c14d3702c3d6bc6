"""How much an evaluation measures, and the bounds that its headline figures have to keep."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

ALPHAS = (0.01, 0.05)
"""The served system's levels that cards tell of."""
RATES = (0.01, 0.05, 0.1)
"""Measured benign flag rates at which systems and scores are compared."""

FIGURES = {
    "accuracy_answering": "clean accuracy, answering network",
    "accuracy_companion": "clean accuracy, companion",
    "accuracy_served": "clean accuracy, as served",
    "flagged_0.01": "benign images flagged at alpha 1 %",
    "flagged_0.05": "benign images flagged at alpha 5 %",
    "harmed": "right answers that neutralisation made wrong, benign",
    "pgd50_4": "companion under PGD-50, 4/255",
    "pgd50_8": "companion under PGD-50, 8/255",
    "autoattack_4": "companion under AutoAttack, 4/255",
    "autoattack_8": "companion under AutoAttack, 8/255",
    "control": "answering network under PGD at a large radius",
    "joint_4": "wrong and not flagged under the joint attack at 4/255, alpha 5 %",
    "joint_8": "wrong and not flagged under the joint attack at 8/255, alpha 5 %",
    "joint_4_0.01": "wrong and not flagged under the joint attack at 4/255, alpha 1 %",
    "joint_8_0.01": "wrong and not flagged under the joint attack at 8/255, alpha 1 %",
    "joint_excess_4": "joint attack at 4/255 beyond the companion's own error, alpha 5 %",
    "joint_excess_8": "joint attack at 8/255 beyond the companion's own error, alpha 5 %",
    "recovered_patch": "noisy patches that fool: answered rightly after neutralisation",
    "recovered_patch_low": "low-frequency patches that fool: answered rightly after neutralisation",
    "recovered_patch_adaptive": "adaptive patches that fool: answered rightly after neutralisation",
}
DETECTED = {
    "fgsm_8": "FGSM 8/255",
    "pgd_4": "PGD 4/255",
    "pgd_8": "PGD 8/255",
    "l2_1": "PGD in L2, 1.0",
    "minimal": "minimal norm with a margin",
    "square_8": "Square 8/255",
    "transfer_8": "transfer 8/255",
    "transfer_16": "transfer 16/255",
    "patch": "noisy patch",
    "patch_low": "low-frequency patch",
}
FIGURES |= {
    "moved": "attacks that move the most vulnerable layer's heat map more than equal noise does",
    "watched": "PGD 8/255: detected by the most vulnerable layer's neurons alone, 5 % of false positives",
}
FIGURES |= {
    f"detected_{attack}_{rate:g}": f"{title}: detected at a measured {100 * rate:g} % of false positives"
    for attack, title in DETECTED.items()
    for rate in ALPHAS
}


class Bound(BaseModel):
    """A headline figure and what it must keep: `at_least` or `at_most` `bound`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    figure: str
    kind: Literal["at_least", "at_most"]
    bound: float

    @field_validator("figure")
    @classmethod
    def _known(cls, figure: str) -> str:
        if figure not in FIGURES:
            raise ValueError(f"unknown figure {figure!r}; there are {', '.join(FIGURES)}")
        return figure


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
    adaptive: int = Field(200, ge=0, description="joint attacks; 0 leaves them out of a build's card")
    adaptive_steps: int = Field(60, ge=1)
    adaptive_targets: int = Field(5, ge=1)
    adaptive_restarts: int = Field(1, ge=1, description="starting points: the image, then random ones")
    doubled: int = Field(60, ge=1, description="joint attack at twice the steps")
    adaptive_patched: int = Field(100, ge=1, description="patches whose maker knows the defence")
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
    "adaptive",
    "doubled",
    "adaptive_patched",
    "harm",
    "queried",
    "explained",
    "layered",
)
