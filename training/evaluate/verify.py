"""`palisade verify`: is a card true? Its numbers against the outcomes they come from, and those measured again.

A card carries the outcome of every image that a headline figure counts. So a figure is checked in two steps: that it is
the share of its outcomes, exactly, and that the outcomes of the first images are those that are measured here. An
altered number fails the first step, altered outcomes the second; neither needs hours. The page is held to the card by
its numbers (`presentation.stated`).
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from gateway.core.loading import Bundle
from training.bundling.provenance import made_with
from training.errors import TrainingError
from training.evaluate.card import PAGE, SCHEMA, check, of_another, page_of
from training.evaluate.harness.bench import Bench
from training.evaluate.harness.found import Figure, counted, unpack, value_of
from training.evaluate.harness.store import Store
from training.evaluate.presentation.plain import plain
from training.evaluate.presentation.stated import misstated
from training.evaluate.registration import Registration, card_problems
from training.evaluate.units import BASIC, UNITS, figures
from training.recipes.evaluation import Bound, Evaluation
from training.util.signatures import StepProgress

# Another processor rounds differently: of the images measured again this share, or two images, may differ.
TOLERANCE = 0.02


def verify(bundle: Bundle, progress: StepProgress, *, count: int | None = None) -> list[dict[str, Any]]:
    """One row for each bound of the bundle's recipe, and one for each number that contradicts the card itself.

    Without bounds (a wrapped network's), one for each figure on the card that a build measures. `count` images are
    measured again by each unit, by default as many as the unit states (`units.Unit.verified`). A card without outcomes
    (schema 2) is compared by its shares, within three standard errors. Raises `TrainingError` when the data are missing
    or are not those of the bundle, or there is no card.
    """
    data, asked = made_with(bundle)
    card = bundle.card()
    if card is None:
        raise TrainingError(f"{bundle.path}: no card to verify; `palisade evaluate {bundle.path}` makes one")
    if card.get("schema_version", SCHEMA) > SCHEMA:
        raise TrainingError(f"{bundle.path}: a later version of Palisade made this card; verify it with that one")
    settings = Evaluation.model_validate(card["settings"])
    recorded = outcomes_of(card)
    rows = stated_problems(bundle, card, asked.bounds)
    wanted = check(card["figures"], asked.bounds) or _unbounded(card["figures"])
    if not wanted:
        raise TrainingError(f"{bundle.path}: no figure of its card can be measured again")
    measured, again = dict[str, Figure](), dict[str, np.ndarray]()
    with tempfile.TemporaryDirectory() as folder:
        for unit in UNITS.values():
            if not set(unit.figures) & {row["figure"] for row in wanted} or not unit.images(settings, bundle, data):
                continue
            few = settings.capped(unit.verified if count is None else count)
            found = unit.run(Bench(bundle, data, few, Store(Path(folder)), progress))
            measured, again = measured | found.figures, again | found.outcomes
    return [*rows, *(_row(card, row, measured, recorded, again) for row in wanted)]


def outcomes_of(card: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The outcomes (n,) bool by image that the card carries, by name."""
    return {row["name"]: unpack(row) for row in card.get("outcomes", [])}


def stated_problems(
    bundle: Bundle, card: Mapping[str, Any], bounds: Sequence[Bound], registered: Registration | None = None
) -> list[dict[str, Any]]:
    """What can be found without measuring: another bundle's card, numbers that contradict outcomes, page, registration.

    `registered` is the one that the card should carry, where the reader has it.
    """
    held = card_problems(card, bundle.manifest, registered)
    other = of_another(card, bundle.manifest)
    return [
        *([] if other is None else [_fails("card", None, None, other)]),
        *contradictions(card, outcomes_of(card)),
        *page_problems(card, bounds, bundle.path / PAGE),
        *plain_problems(card),
        *(_fails("registration", None, None, problem) for problem in held),
    ]


def _unbounded(found: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Rows such as `card.check` returns, of the card's figures that units of a build measure."""
    titles = {name: title for unit in BASIC for name, title in UNITS[unit].figures.items()}
    return [
        {"figure": name, "title": titles[name], "value": row["value"], "n": row["n"], "pass": True}
        for name, row in found.items()
        if name in titles
    ]


def contradictions(card: Mapping[str, Any], recorded: Mapping[str, np.ndarray]) -> list[dict[str, Any]]:
    """Numbers of the card that are not those of its own outcomes."""
    rows = []
    for name, row in card["figures"].items():
        if "outcome" not in row:
            continue
        figure = Figure(row["outcome"], row["among"], row["minus"], row["at"])
        if missing := [each for each in figure.outcomes if each not in recorded]:
            rows.append(_fails(name, row["value"], None, f"the card lacks the outcomes {', '.join(missing)}"))
            continue
        value, n = value_of(figure, recorded), counted(figure, recorded)
        for where, stated in (("figures", row["value"]), (".".join(figure.at), _at(card, figure.at))):
            if value is None or not isinstance(stated, float | int) or not math.isclose(stated, value, abs_tol=1e-9):
                rows.append(_fails(name, stated, value, f"{where} is not the share of the card's outcomes"))
        if row["n"] != n:
            rows.append(_fails(name, row["n"], n, "n is not that of the card's outcomes"))
    return rows


def page_problems(card: Mapping[str, Any], bounds: Sequence[Bound], page: Path) -> list[dict[str, Any]]:
    """Numbers and verdicts of the card's page that are not the card's; wording is not compared.

    Cards without outcomes (schema 2) were laid out otherwise, and their pages are not compared.
    """
    if not any("outcome" in row for row in card["figures"].values()):
        return []
    try:
        text = page.read_text("utf-8")
    except (OSError, UnicodeDecodeError):
        return [_fails(PAGE, None, None, "cannot be read")]
    rows = check(card["figures"], bounds)
    try:
        rendered = page_of(card, rows)
    except TrainingError as error:
        return [_fails(PAGE, None, None, str(error))]
    return [_fails(PAGE, None, None, why) for why in misstated(text, rendered, len(rows))]


def plain_problems(card: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Numbers of the sentences that the card carries for its readers which are not the card's."""
    if "plain" not in card:
        return []
    try:
        right = plain(card, check(card["figures"], Evaluation.model_validate(card["settings"]).bounds))
        mine, wanted = (
            "\n".join(text for part in parts for text in part["sentences"])
            for parts in (card["plain"], [asdict(part) for part in right])
        )
    except TrainingError as error:
        return [_fails("plain", None, None, str(error))]
    return [_fails("plain", None, None, why) for why in misstated(mine, wanted, 0)]


def _at(card: Mapping[str, Any], keys: Sequence[str]) -> Any:
    found: Any = card
    for key in keys:
        found = found.get(key) if isinstance(found, Mapping) else None
    return found


def _fails(name: str, stated: float | None, value: float | None, why: str) -> dict[str, Any]:
    return {"title": figures().get(name, name), "card": stated, "value": value, "n": 0, "why": why, "pass": False}


def _row(
    card: Mapping[str, Any],
    bound: dict[str, Any],
    measured: Mapping[str, Figure],
    recorded: Mapping[str, np.ndarray],
    again: Mapping[str, np.ndarray],
) -> dict[str, Any]:
    """A bound on the card's figure, and whether what was measured again agrees with it."""
    figure = measured.get(bound["figure"])
    row = bound | {"card": bound["value"], "value": None, "n_card": bound["n"], "n": 0, "why": ""}
    if bound["pass"] is None or figure is None:
        return row | {"pass": False, "why": "not on the card" if bound["pass"] is None else "could not be measured"}
    row |= {"value": value_of(figure, again), "n": counted(figure, again)}
    if figure.outcome in recorded:
        agrees, row["why"] = _same_outcomes(figure, recorded, again)
    else:
        agrees, row["why"] = _same_share(card["figures"][bound["figure"]], row["value"], row["n"])
    return row | {"pass": bool(bound["pass"] and agrees), "why": row["why"] if not agrees else ""}


def _same_outcomes(
    figure: Figure, recorded: Mapping[str, np.ndarray], again: Mapping[str, np.ndarray]
) -> tuple[bool, str]:
    """Whether the outcomes of the images measured again are the card's, but for a few."""
    for name in figure.outcomes:
        n = min(len(recorded[name]), len(again[name]))
        differ = int((recorded[name][:n] != again[name][:n]).sum())
        if differ > max(2, math.ceil(TOLERANCE * n)):
            return False, f"{differ} of the first {n} outcomes differ from the card's"
    return True, ""


def _same_share(recorded: Mapping[str, Any], value: float | None, n: int) -> tuple[bool, str]:
    if value is None or n == 0:
        return False, "no image counts"
    error = math.sqrt(max(value * (1 - value), 0.25 / n) * (1 / n + 1 / recorded["n"])) if 0 <= value <= 1 else 0.5
    limit = 0.005 if n == recorded["n"] else max(0.005, 3 * error)
    return abs(recorded["value"] - value) <= limit, f"the card states {recorded['value']:.4f}"
