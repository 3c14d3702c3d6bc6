"""Text and tables: what a unit's section looks like on the card's page and in its report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from training.evaluate.harness.section import Interval

T = TypeVar("T")


@dataclass(frozen=True)
class Table:
    """Cells as text; every row is as long as `head`."""

    head: Sequence[str]
    rows: Sequence[Sequence[str]]


Body = list[str | Table]
"""Paragraphs, with `code` and **emphasis**, and tables."""


def percent(value: float | None, digits: int = 1) -> str:
    """A share in per cent; "-" where there is none."""
    return "-" if value is None else f"{100 * value:.{digits}f} %"


def ranged(value: float | None, limits: Interval, digits: int = 1) -> str:
    """A share with its interval, where it has one."""
    text = percent(value, digits)
    return text if not limits else f"{text} ({100 * limits[0]:.{digits}f} to {100 * limits[1]:.{digits}f})"


def by_eps(group: Mapping[str, T]) -> list[tuple[str, T]]:
    """(radius as text, part) of the parts `eps_<radius>`, of 255."""
    return [(f"{name.removeprefix('eps_')}/255", part) for name, part in group.items() if name.startswith("eps_")]
