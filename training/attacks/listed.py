"""The attacks that cards measure against a defence that their makers do not know: one line for each file."""

from __future__ import annotations

from training.attacks import fgsm, minimal_norm, obstacles, patch, pgd, shapes, square
from training.attacks.unaware import Attack, by_name

ATTACKS: dict[str, Attack] = by_name(
    *fgsm.TRANSFERRED,
    *fgsm.ROBUSTLY_TRANSFERRED,
    *square.CARD,
    *fgsm.CARD,
    *pgd.CARD,
    *minimal_norm.CARD,
    *patch.CARD,
    *shapes.CARD,
    *obstacles.CARD,
)
