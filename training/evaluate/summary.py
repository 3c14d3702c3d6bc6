"""`palisade evaluate --summary`: six rows of a card for a README, the adaptive figure last and in full."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from training.evaluate.harness.shown import percent
from training.evaluate.units import UNITS

# What a row states, and the card's figures that it is made of, side by side.
ROWS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("clean accuracy, as served", ("accuracy_served",)),
    ("benign images flagged at alpha 1 % / 5 %", ("flagged_0.01", "flagged_0.05")),
    (
        "PGD 8/255, unaware of the defence: detected at a measured 1 % / 5 % of false positives",
        ("detected_pgd_8_0.01", "detected_pgd_8_0.05"),
    ),
    ("noisy patch, unaware, where it fools the network: answered rightly", ("recovered_patch",)),
    ("low-frequency patch, unaware, where it fools the network: answered rightly", ("recovered_patch_low",)),
    (
        "**an attacker who knows everything**, 8/255: wrong and not flagged at alpha 1 % / 5 %",
        ("joint_8_0.01", "joint_8"),
    ),
)
# Of a bundle whose networks answer together, the figures with that in their place.
POOLED = {
    "accuracy_served": "pool_accuracy",
    "recovered_patch": "pool_right_patch",
    "recovered_patch_low": "pool_right_patch_low",
    "joint_8_0.01": "pool_adaptive_0.01",
    "joint_8": "pool_adaptive_0.05",
}


def summary(card: Mapping[str, Any]) -> str:
    """A table of Markdown with six rows: what was measured, its value, n, seed and date, or that it was not."""
    dates = {row["unit"]: row["date"] for row in card["units"]}
    measured_by = {figure: name for name, unit in UNITS.items() for figure in unit.figures}
    lines = ["| measured | value | n | seed | date |", "| --- | --- | --- | --- | --- |"]
    for title, usual in ROWS:
        pooled = tuple(POOLED.get(name, name) for name in usual)
        names = pooled if all(name in card["figures"] for name in pooled) else usual
        if not all(name in card["figures"] for name in names):
            lines.append(f"| {title} | not measured | | | |")
            continue
        found = [card["figures"][name] for name in names]
        value = " / ".join(percent(row["value"]) for row in found)
        date = dates.get(measured_by[names[0]], card["date"])
        lines.append(f"| {title} | {value} | {found[0]['n']:,} | {found[0]['seed']} | {date} |")
    return "\n".join(lines) + "\n"
