"""`palisade evaluate --rewrite`: a bundle's page, report and titles made anew from its card, without measuring."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gateway.core.loading import load_bundle, write_manifest
from training.errors import TrainingError
from training.evaluate.card import READABLE, REPORT, stated_by, titled, write_card
from training.evaluate.harness.found import unpack
from training.evaluate.presentation.kept import kept_of
from training.evaluate.presentation.report import Drawn
from training.evaluate.verify import contradictions
from training.util.atomic import draft_of


def rewrite(path: Path) -> dict[str, Any]:
    """Write `card.json`, `card.md` and `report.html` of the bundle in `path` anew, and return the card.

    Measurements, their dates and their outcomes stay as they are; titles and wording are those of this version. What
    only the report has (ROC curves, pictures) is taken over from the report that is there. Raises `TrainingError`
    without a card, and for one whose figures are not those of its outcomes.
    """
    bundle = load_bundle(path)
    card = bundle.card()
    if card is None:
        raise TrainingError(f"{path}: no card to write anew; `palisade evaluate {path}` makes one")
    if card.get("schema_version") not in READABLE:
        known = ", ".join(map(str, READABLE))
        raise TrainingError(
            f"{path}: card of schema version {card.get('schema_version')}; those of {known} can be written anew"
        )
    wrong = contradictions(card, {row["name"]: unpack(row) for row in card.get("outcomes", [])})
    if wrong:
        raise TrainingError(f"{path}: the card contradicts itself: {wrong[0]['title']}: {wrong[0]['why']}")
    report = path / REPORT
    drawn = Drawn(kept=kept_of(report.read_text("utf-8"))) if report.is_file() else Drawn()
    new = titled(card | stated_by(bundle))
    with draft_of(path, copy=True) as draft:
        write_card(draft, new, drawn)
        write_manifest(draft, bundle.manifest, as_read=True)
        load_bundle(draft)
    return new
