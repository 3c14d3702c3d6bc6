"""Which public taxonomy names what each unit of the card measures: NIST AI 100-2 E2025 and MITRE ATLAS.

One row for each unit. Sections are those of NIST AI 100-2 E2025, "Adversarial Machine Learning: A Taxonomy and
Terminology of Attacks and Mitigations" (2025); techniques are those of MITRE ATLAS in the version stated here.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

NIST = "NIST AI 100-2 E2025"
ATLAS, ATLAS_VERSION = "MITRE ATLAS", "5.6.0"
SECTIONS = {
    "2.2.1": "White-Box Evasion Attacks",
    "2.2.2": "Black-Box Evasion Attacks",
    "2.2.3": "Transferability of Attacks",
    "2.2.4": "Evasion Attacks in the Real World",
    "2.2.5": "Mitigations",
}
"""Titles of the sections of NIST AI 100-2 E2025 by number; all are of 2.2, "Evasion Attacks and Mitigations"."""
TECHNIQUES = {
    "AML.T0005.000": "Create Proxy AI Model: Train Proxy via Gathered AI Artifacts",
    "AML.T0015": "Evade AI Model",
    "AML.T0040": "AI Model Inference API Access",
    "AML.T0041": "Physical Environment Access",
    "AML.T0043.000": "Craft Adversarial Data: White-Box Optimization",
    "AML.T0043.001": "Craft Adversarial Data: Black-Box Optimization",
    "AML.T0043.002": "Craft Adversarial Data: Black-Box Transfer",
    "AML.T0044": "Full AI Model Access",
    "AML.T0063": "Discover AI Model Outputs",
}
"""Names of techniques of MITRE ATLAS by id."""


@dataclass(frozen=True)
class Reference:
    """Numbers of sections of NIST AI 100-2 and ids of ATLAS techniques; both empty where no attacker is measured."""

    nist: tuple[str, ...] = ()
    atlas: tuple[str, ...] = ()

    @property
    def sections(self) -> list[str]:
        """Number and title of each section."""
        return [f"{number} {SECTIONS[number]}" for number in self.nist]

    @property
    def techniques(self) -> list[str]:
        """Id and name of each technique."""
        return [f"{name} {TECHNIQUES[name]}" for name in self.atlas]


_NONE = Reference()
_COST = Reference(("2.2.5",))
_WHITE = Reference(("2.2.1",), ("AML.T0044", "AML.T0043.000", "AML.T0015"))
_BOTH = Reference(("2.2.1", "2.2.2"), ("AML.T0044", "AML.T0043.000", "AML.T0043.001", "AML.T0015"))
_TRANSFER = Reference(("2.2.3",), ("AML.T0005.000", "AML.T0043.002", "AML.T0015"))
_QUERY = Reference(("2.2.2",), ("AML.T0040", "AML.T0043.001", "AML.T0015"))
_PATCH = Reference(("2.2.1", "2.2.4"), ("AML.T0044", "AML.T0043.000", "AML.T0041", "AML.T0015"))
_OBSTACLE = Reference(("2.2.2", "2.2.4"), ("AML.T0041", "AML.T0043.001", "AML.T0015"))
_ADAPTIVE = Reference(("2.2.1", "2.2.5"), _WHITE.atlas)

REFERENCES: dict[str, Reference] = {
    "benign": _COST,
    "cascade": _COST,
    "shifts": _COST,
    "companion_pgd_4": _WHITE,
    "companion_pgd_8": _WHITE,
    "autoattack_4": _BOTH,
    "autoattack_8": _BOTH,
    "control": _WHITE,
    "gradients": _WHITE,
    "curve": _WHITE,
    "transfer_8": _TRANSFER,
    "transfer_16": _TRANSFER,
    "transfer_robust_8": _TRANSFER,
    "transfer_robust_16": _TRANSFER,
    "square_8": _QUERY,
    "fgsm_8": _WHITE,
    "pgd_4": _WHITE,
    "pgd_8": _WHITE,
    "l2_1": _WHITE,
    "minimal": _WHITE,
    "patch": _PATCH,
    "patch_low": _PATCH,
    "strip": _PATCH,
    "strip_smooth": _PATCH,
    "oblong_smooth": _PATCH,
    "pair": _PATCH,
    "bars": _OBSTACLE,
    "dull_sticker": _OBSTACLE,
    "half_shadow": _OBSTACLE,
    "colour_cast": _OBSTACLE,
    "rain": _OBSTACLE,
    "sparse": _QUERY,
    "adaptive_4": _ADAPTIVE,
    "adaptive_8": _ADAPTIVE,
    "doubled": _ADAPTIVE,
    "smoothed": _ADAPTIVE,
    "patch_adaptive": Reference(("2.2.1", "2.2.4", "2.2.5"), _PATCH.atlas),
    "votes": _COST,
    "votes_unaware": _PATCH,
    "votes_adaptive": Reference(("2.2.1", "2.2.4", "2.2.5"), _PATCH.atlas),
    "pool": _COST,
    "pool_unaware": Reference(("2.2.1", "2.2.2", "2.2.4"), _PATCH.atlas),
    "pool_adaptive": _ADAPTIVE,
    "pool_adaptive_4": _ADAPTIVE,
    "harm": _ADAPTIVE,
    "queries": Reference(("2.2.2", "2.2.5"), (*_QUERY.atlas, "AML.T0063")),
    "certificates": _PATCH,
    "small_field": _PATCH,
    "explanations": _NONE,
    "layers": _WHITE,
    "pictures": _NONE,
}
"""What each unit measures, by its name."""


def references_of(units: Iterable[str]) -> dict[str, dict[str, list[str]]]:
    """{unit: {nist, atlas}} with numbers and titles, of those units that the table knows."""
    return {
        unit: {"nist": REFERENCES[unit].sections, "atlas": REFERENCES[unit].techniques}
        for unit in units
        if unit in REFERENCES
    }
