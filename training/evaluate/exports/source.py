"""What every export is made of: a bundle's manifest and its card, and nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from gateway.core.loading import Bundle
from gateway.core.manifest import MANIFEST, Manifest
from training.errors import TrainingError
from training.evaluate.card import SCHEMA, check, of_another
from training.evaluate.presentation.claims import Claim, claims
from training.evaluate.presentation.plain import limitations, price
from training.evaluate.units import UNITS
from training.recipes.evaluation import Evaluation

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Source:
    """A card of the present schema, the manifest of its bundle, and the SHA-256 of that manifest's file."""

    manifest: Manifest
    card: dict[str, Any]
    manifest_sha256: str

    @cached_property
    def files(self) -> dict[str, str]:
        """SHA-256 of every file of the bundle by name, the manifest's own among them."""
        return {**self.manifest.files, MANIFEST: self.manifest_sha256}

    @cached_property
    def bounds(self) -> list[dict[str, Any]]:
        """Rows of `card.check`."""
        return check(self.card["figures"], Evaluation.model_validate(self.card["settings"]).bounds)

    @cached_property
    def claims(self) -> list[Claim]:
        return claims(self.card)

    @cached_property
    def limitations(self) -> list[str]:
        return limitations(self.card)

    @cached_property
    def price(self) -> list[str]:
        return price(self.card)

    @cached_property
    def unit_of(self) -> dict[str, str]:
        """The unit that measures each figure."""
        return {figure: name for name, unit in UNITS.items() for figure in unit.figures}

    def references(self, unit: str | None) -> dict[str, list[str]]:
        """{nist, atlas}: the titles that the card has for a unit; empty lists without any."""
        found = self.card["titles"].get("references", {}).get(unit or "", {})
        return {key: list(found.get(key, [])) for key in ("nist", "atlas")}

    def interval(self, figure: str) -> tuple[float, float] | None:
        """The 95 % interval that the card's tables have beside a figure."""
        keys = self.card["figures"][figure]["at"]
        for depth in (1, 2):  # flagged.0.05 has its interval as flagged_0.05_interval, one level up
            place: Any = self.card
            for key in keys[:-depth]:
                place = place.get(key, {}) if isinstance(place, Mapping) else {}
            found = place.get("_".join([*keys[-depth:], "interval"])) if isinstance(place, Mapping) else None
            if found:
                return float(found[0]), float(found[1])
        return None


def source_of(bundle: Bundle) -> Source:
    """The card and manifest of a bundle; `TrainingError` without a card, for another's, and for an earlier schema."""
    card = bundle.card()
    if card is None:
        raise TrainingError(f"{bundle.path}: no card to export; `palisade evaluate {bundle.path}` makes one")
    if card.get("schema_version") != SCHEMA:
        raise TrainingError(
            f"{bundle.path}: card of schema version {card.get('schema_version')}; "
            f"`palisade evaluate {bundle.path} --rewrite` brings it to version {SCHEMA}"
        )
    if (other := of_another(card, bundle.manifest)) is not None:
        raise TrainingError(f"{bundle.path}: the card: {other}; `palisade evaluate {bundle.path}` makes its own")
    return Source(bundle.manifest, card, bundle.manifest_sha256)
