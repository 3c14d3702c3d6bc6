"""What a measurement finds: tables for the card, headline figures, and the outcomes by image that they are made of."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from training.errors import TrainingError
from training.evaluate.harness.section import Section


@dataclass(frozen=True)
class Figure:
    """A headline figure: the share of True of `outcome` (among those of `among`), less that of `minus`.

    `at` are the keys under which the card's tables have the same number.
    """

    outcome: str
    among: str | None = None
    minus: str | None = None
    at: Sequence[str] = ()

    @property
    def outcomes(self) -> list[str]:
        """Names of the outcomes that it is made of."""
        return [name for name in (self.outcome, self.among, self.minus) if name is not None]


@dataclass
class Found:
    """One unit's findings. `section` goes into the card; `outcomes` (n,) bool are kept by name.

    `curves` are what only the report draws and what self-checks compare.
    """

    section: Section
    figures: dict[str, Figure] = field(default_factory=dict)
    outcomes: dict[str, np.ndarray] = field(default_factory=dict)
    curves: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return {
            "section": self.section.to_json(),
            "figures": {name: vars(figure) for name, figure in self.figures.items()},
            "outcomes": {name: pack(bits) for name, bits in self.outcomes.items()},
            "curves": self.curves,
        }


def pack(bits: np.ndarray) -> dict[str, Any]:
    """Booleans (n,) as JSON: {n, bits} with the bits in base64, the first in the highest bit of the first byte."""
    return {"n": len(bits), "bits": base64.b64encode(np.packbits(bits.astype(bool)).tobytes()).decode()}


def unpack(packed: dict[str, Any]) -> np.ndarray:
    """The booleans (n,) of `pack`; `TrainingError` if they are not as many as stated."""
    try:
        raw = base64.b64decode(packed["bits"], validate=True)
        n = int(packed["n"])
    except (KeyError, TypeError, ValueError) as error:
        raise TrainingError(f"outcomes that cannot be read: {error}") from None
    if len(raw) != (n + 7) // 8:
        raise TrainingError(f"outcomes of {n} images are {len(raw)} bytes")
    return np.unpackbits(np.frombuffer(raw, np.uint8), count=n).astype(bool)


def value_of(figure: Figure, outcomes: Mapping[str, np.ndarray]) -> float | None:
    """The figure of these outcomes; None where no image counts."""
    which = outcomes[figure.outcome]
    chosen = which if figure.among is None else which[outcomes[figure.among]]
    if len(chosen) == 0:
        return None
    less = 0.0 if figure.minus is None else float(outcomes[figure.minus].mean())
    return float(chosen.mean()) - less


def counted(figure: Figure, outcomes: Mapping[str, np.ndarray]) -> int:
    """How many images the figure is a share of."""
    return len(outcomes[figure.outcome]) if figure.among is None else int(outcomes[figure.among].sum())
