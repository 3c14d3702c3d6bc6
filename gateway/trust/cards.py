"""What `PALISADE_REQUIRE_CARD` asks of a robustness card."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta

from gateway.core.loading import Bundle
from gateway.core.manifest import CARD
from gateway.errors import CardRefused


def require_card(bundle: Bundle, days: int, *, today: date | None = None) -> None:
    """Raise `CardRefused` unless the card is complete, every check in it passed, and it is at most `days` days old."""
    card, path = bundle.card(), bundle.path / CARD
    if card is None:
        raise CardRefused(f"{path}: missing, and PALISADE_REQUIRE_CARD asks for it")
    if card.get("status") != "complete":
        named = [str(unit) for unit in [*card.get("missing", []), *card.get("reduced", [])]]
        what = ", ".join(named[:5]) + (f" and {len(named) - 5} more" if len(named) > 5 else "")
        raise CardRefused(f"{path}: {card.get('status') or 'of no status'}" + (f": {what}" if what else ""))
    failed = [check.get("check", "?") for check in card.get("checks", []) if check.get("passed") is not True]
    if failed:
        raise CardRefused(f"{path}: checks that did not pass: {', '.join(failed)}")
    try:
        made = date.fromisoformat(card["date"])
    except (KeyError, TypeError, ValueError):
        raise CardRefused(f"{path}: states no date") from None
    now = today or datetime.now(UTC).date()
    if not now - timedelta(days=days) <= made <= now + timedelta(days=1):
        raise CardRefused(f"{path}: of {made}, older than {days} days (or of a day to come)")
