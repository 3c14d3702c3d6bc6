"""`palisade verify`: is a card true? Its numbers against the outcomes they come from, and those measured again.

A card carries the outcome of every image that a headline figure counts. So a figure is checked in two steps: that it is
the share of its outcomes, exactly, and that the outcomes of the first images are those that are measured here. An
altered number fails the first step, altered outcomes the second; neither needs hours.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gateway.core.loading import Bundle
from training.bundling.provenance import made_with
from training.errors import TrainingError
from training.evaluate.card import PAGE, check
from training.evaluate.harness.bench import Bench
from training.evaluate.harness.found import Figure, counted, unpack, value_of
from training.evaluate.harness.store import Store
from training.evaluate.presentation.page import markdown
from training.evaluate.units import BASIC, UNITS
from training.recipes.evaluation import FIGURES, Bound, Evaluation
from training.util.signatures import StepProgress

# Another processor rounds differently: of the images measured again this share, or two images, may differ.
TOLERANCE = 0.02


def verify(bundle: Bundle, progress: StepProgress, *, count: int | None = None) -> list[dict[str, Any]]:
    """One row for each bound of the bundle's recipe, and one for each number that contradicts the card itself.

    Without bounds (a wrapped network's), one for each figure on the card that a build measures. `count` images are
    measured again by each unit, by default as many as the unit says (`units.Unit.verified`). A card without outcomes
    (schema 2) is compared by its shares, within three standard errors. Raises `TrainingError` when the data are missing
    or are not those of the bundle, or there is no card.
    """
    data, asked = made_with(bundle)
    card = bundle.card()
    if card is None:
        raise TrainingError(f"{bundle.path}: no card to verify; `palisade evaluate {bundle.path}` makes one")
    settings = Evaluation.model_validate(card["settings"])
    told = {row["name"]: unpack(row) for row in card.get("outcomes", [])}
    rows = contradictions(card, told, asked.bounds, bundle.path / PAGE)
    wanted = check(card["figures"], asked.bounds) or _unbounded(card["figures"])
    if not wanted:
        raise TrainingError(f"{bundle.path}: no figure of its card can be measured again")
    figures, again = dict[str, Figure](), dict[str, np.ndarray]()
    with tempfile.TemporaryDirectory() as folder:
        for unit in UNITS.values():
            if not set(unit.figures) & {row["figure"] for row in wanted} or not unit.images(settings, bundle, data):
                continue
            few = settings.capped(unit.verified if count is None else count)
            found = unit.run(Bench(bundle, data, few, Store(Path(folder)), progress))
            figures, again = figures | found.figures, again | found.outcomes
    return [*rows, *(_row(card, row, figures, told, again) for row in wanted)]


def _unbounded(figures: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Rows such as `card.check` gives, of the card's figures that units of a build measure."""
    measured = {name for unit in BASIC for name in UNITS[unit].figures}
    return [
        {"figure": name, "title": FIGURES[name], "value": row["value"], "n": row["n"], "pass": True}
        for name, row in figures.items()
        if name in measured
    ]


def contradictions(
    card: Mapping[str, Any], told: Mapping[str, np.ndarray], bounds: Sequence[Bound], page: Path
) -> list[dict[str, Any]]:
    """Numbers of the card that are not those of its own outcomes, and a page that does not say what the card says."""
    rows = []
    for name, row in card["figures"].items():
        if "outcome" not in row:
            continue
        figure = Figure(row["outcome"], row["among"], row["minus"], row["at"])
        if missing := [each for each in figure.outcomes if each not in told]:
            rows.append(_fails(name, row["value"], None, f"the card lacks the outcomes {', '.join(missing)}"))
            continue
        value, n = value_of(figure, told), counted(figure, told)
        for where, said in (("figures", row["value"]), (".".join(figure.at), _at(card, figure.at))):
            if value is None or not isinstance(said, float | int) or not math.isclose(said, value, abs_tol=1e-9):
                rows.append(_fails(name, said, value, f"{where} is not the share of the card's outcomes"))
        if row["n"] != n:
            rows.append(_fails(name, row["n"], n, "n is not that of the card's outcomes"))
    if any("outcome" in row for row in card["figures"].values()) and (
        not page.is_file() or page.read_text("utf-8") != markdown(dict(card), check(card["figures"], bounds))
    ):
        rows.append(_fails(PAGE, None, None, "does not say what card.json says"))
    return rows


def _at(card: Mapping[str, Any], keys: Sequence[str]) -> Any:
    found: Any = card
    for key in keys:
        found = found.get(key) if isinstance(found, Mapping) else None
    return found


def _fails(name: str, said: float | None, value: float | None, why: str) -> dict[str, Any]:
    return {"title": FIGURES.get(name, name), "card": said, "value": value, "n": 0, "why": why, "pass": False}


def _row(
    card: Mapping[str, Any],
    bound: dict[str, Any],
    figures: Mapping[str, Figure],
    told: Mapping[str, np.ndarray],
    again: Mapping[str, np.ndarray],
) -> dict[str, Any]:
    """A bound on the card's figure, and whether what was measured again agrees with it."""
    figure = figures.get(bound["figure"])
    row = bound | {"card": bound["value"], "value": None, "n_card": bound["n"], "n": 0, "why": ""}
    if bound["pass"] is None or figure is None:
        return row | {"pass": False, "why": "not on the card" if bound["pass"] is None else "could not be measured"}
    row |= {"value": value_of(figure, again), "n": counted(figure, again)}
    if figure.outcome in told:
        agrees, row["why"] = _same_outcomes(figure, told, again)
    else:
        agrees, row["why"] = _same_share(card["figures"][bound["figure"]], row["value"], row["n"])
    return row | {"pass": bool(bound["pass"] and agrees), "why": row["why"] if not agrees else ""}


def _same_outcomes(figure: Figure, told: Mapping[str, np.ndarray], again: Mapping[str, np.ndarray]) -> tuple[bool, str]:
    """Whether the outcomes of the images measured again are the card's, but for a few."""
    for name in figure.outcomes:
        n = min(len(told[name]), len(again[name]))
        differ = int((told[name][:n] != again[name][:n]).sum())
        if differ > max(2, math.ceil(TOLERANCE * n)):
            return False, f"{differ} of the first {n} outcomes differ from the card's"
    return True, ""


def _same_share(told: Mapping[str, Any], value: float | None, n: int) -> tuple[bool, str]:
    if value is None or n == 0:
        return False, "no image counts"
    error = math.sqrt(max(value * (1 - value), 0.25 / n) * (1 / n + 1 / told["n"])) if 0 <= value <= 1 else 0.5
    limit = 0.005 if n == told["n"] else max(0.005, 3 * error)
    return abs(told["value"] - value) <= limit, f"the card says {told['value']:.4f}"
