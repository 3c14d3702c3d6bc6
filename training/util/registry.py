"""Builds the list of a seam: items by their names, each name once."""

from __future__ import annotations

import re
from typing import Protocol, TypeVar

_NAME = re.compile(r"[a-z][a-z0-9_]*")


class Titled(Protocol):
    """How a bundle's manifest, card and console describe a part of the defence."""

    @property
    def name(self) -> str: ...

    @property
    def title(self) -> str: ...

    @property
    def meaning(self) -> str: ...


T = TypeVar("T", bound=Titled)


def by_name(*items: T) -> dict[str, T]:
    """`items` by name, in their order.

    `ValueError` for a name that is not in snake case or is used twice, and for one without a title or a meaning.
    """
    found: dict[str, T] = {}
    for item in items:
        if not _NAME.fullmatch(item.name):
            raise ValueError(f"{item.name!r} is not a name: expected small letters, digits and underscores")
        if item.name in found:
            raise ValueError(f"the name {item.name!r} is used twice")
        if not (item.title and item.meaning):
            raise ValueError(f"{item.name} has no title or no meaning, which people read in place of its name")
        found[item.name] = item
    return found
