"""What `PALISADE_REQUIRE_CARD` asks of a robustness card."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from typing import Any

from gateway.core.loading import Bundle
from gateway.core.manifest import CARD
from gateway.errors import CardRefused


def require_card(bundle: Bundle, days: int, *, today: date | None = None) -> None:
    """Raise `CardRefused` unless the card is this version's and complete, its checks passed, and it is recent enough.

    That is: the oldest of its measurements was made at most `days` days ago.
    """
    card, path = bundle.card(), bundle.path / CARD
    if card is None:
        raise CardRefused(f"{path}: missing, and PALISADE_REQUIRE_CARD asks for it")
    try:
        problem = _of_another(card, bundle) or _problem(card, days, today or datetime.now(UTC).date())
    except (AttributeError, KeyError, TypeError):
        problem = "not laid out as a card is"
    if problem is not None:
        raise CardRefused(f"{path}: {problem}")


def _of_another(card: dict[str, Any], bundle: Bundle) -> str | None:
    if (card["bundle"], card["version"]) != (bundle.name, bundle.version):
        return f"of {card['bundle']} {card['version']}, not of {bundle.name} {bundle.version}"
    return None


def _problem(card: dict[str, Any], days: int, today: date) -> str | None:
    if card.get("status") != "complete":
        named = [str(unit) for unit in [*card.get("missing", []), *card.get("reduced", [])]]
        what = ", ".join(named[:5]) + (f" and {len(named) - 5} more" if len(named) > 5 else "")
        return f"{card.get('status') or 'of no status'}" + (f": {what}" if what else "")
    if failed := [str(check["check"]) for check in card["checks"] if check["passed"] is not True]:
        return f"checks that did not pass: {', '.join(failed)}"
    try:
        # A measurement that was added since does not make the others younger.
        dates = [date.fromisoformat(of["date"]) for of in [card, *card.get("units", [])]]
    except (KeyError, TypeError, ValueError):
        return "states no date"
    if (oldest := min(dates)) < today - timedelta(days=days):
        return f"of {oldest}, older than {days} days"
    if (newest := max(dates)) > today + timedelta(days=1):
        return f"of {newest}, a day to come"
    return None
