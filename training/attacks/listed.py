"""The attacks that cards measure against a defence that their makers do not know: one line for each file."""

from __future__ import annotations

from training.attacks import fgsm, minimal_norm, patch, pgd, square
from training.attacks.unaware import Attack, by_name

ATTACKS: dict[str, Attack] = by_name(
    *fgsm.TRANSFERRED,
    *square.CARD,
    *fgsm.CARD,
    *pgd.CARD,
    *minimal_norm.CARD,
    *patch.CARD,
)
