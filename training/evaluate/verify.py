"""`palisade verify`: compute the headline figures again and hold them against their bounds and against the card."""

from __future__ import annotations

from typing import Any

from gateway.bundle import Bundle
from training.build import load_data, recipe_of, same_data
from training.errors import TrainingError
from training.evaluate.card import Progress, check, headline

# Another processor rounds differently; a figure of the card may differ by this much from what is measured here.
TOLERANCE = 0.005


def verify(bundle: Bundle, progress: Progress, *, robust: int | None = None) -> list[dict[str, Any]]:
    """Rows of figure, value, bound, card's value, n, seed and `pass`.

    A row passes if its bound is kept and, where it was measured on as many images as the card's, if it agrees with the
    card within `TOLERANCE`. Raises `TrainingError` when the data are missing or are not those of the bundle.
    """
    recipe, settings = recipe_of(bundle)
    data = load_data(recipe)
    same_data(bundle, data)
    card = bundle.card()
    if card is None or not settings.bounds:
        raise TrainingError(f"{bundle.path}: the card names no bounds to verify")
    rows = check(headline(bundle, data, settings, progress, robust=robust)["figures"], settings.bounds)
    for row in rows:
        told = card["figures"][row["figure"]]
        row["card"] = told["value"]
        # Of few images, one or two may fall on the other side.
        tolerance = max(TOLERANCE, 2.5 / row["n"])
        row["agrees"] = told["n"] != row["n"] or abs(told["value"] - row["value"]) <= tolerance
        row["pass"] = row["pass"] and row["agrees"]
    return rows
