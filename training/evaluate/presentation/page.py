"""The card as a page of Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from training.evaluate.presentation.content import STATUS, Table, headline, introduction, sections


def markdown(card: dict[str, Any], bounds: list[dict[str, Any]]) -> str:
    """The page of `card`; `bounds` are the rows of `card.check`."""
    blocks = [
        f"# Robustness card: {card['bundle']} {card['version']}",
        f"**{STATUS[card['status']]}**",
        introduction(card),
        _laid(headline(bounds)),
    ]
    for section in sections(card):
        blocks += [f"## {section.title}", *(_laid(part) for part in section.body)]
    return "\n\n".join(block for block in blocks if block) + "\n"


def _laid(part: str | Table) -> str:
    if isinstance(part, str):
        return part
    rows = [part.head, ["---"] * len(part.head), *part.rows] if part.rows else []
    return "\n".join(_row(row) for row in rows)


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |"
