"""The card as a page of Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from training.evaluate.harness.shown import Table
from training.evaluate.harness.unit import Place
from training.evaluate.presentation.content import FIGURES, STATUS, Card, chapters, headline, introduction
from training.evaluate.presentation.plain import PLAIN_SINCE, TITLE, plain


def markdown(card: Card, bounds: Sequence[Card], places: Sequence[Place[Any]]) -> str:
    """The page of `card`; `bounds` are the rows of `card.check`, `places` its sections in order.

    Cards of schema versions before `PLAIN_SINCE` have no page in plain words.
    """
    blocks = [
        f"# Robustness card: {card['bundle']} {card['version']}",
        f"**{STATUS[card['status']]}**",
    ]
    if card.get("schema_version", PLAIN_SINCE) >= PLAIN_SINCE:
        blocks.append(f"## {TITLE}")
        for part in plain(card, bounds):
            blocks += [f"### {part.title}", "\n".join(f"- {sentence}" for sentence in part.sentences)]
        blocks.append(f"## {FIGURES}")
    blocks += [introduction(card), _laid(headline(bounds))]
    for chapter in chapters(card, places):
        blocks.append(f"## {chapter.title}")
        for section in chapter.sections:
            blocks += [f"### {section.title}", *(_laid(part) for part in section.body)]
    return "\n\n".join(block for block in blocks if block) + "\n"


def _laid(part: str | Table) -> str:
    if isinstance(part, str):
        return part
    rows = [part.head, ["---"] * len(part.head), *part.rows] if part.rows else []
    return "\n".join(_row(row) for row in rows)


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |"
