"""Refusals of names that do not exist, with the nearest one that does."""

from __future__ import annotations

from collections.abc import Collection
from difflib import get_close_matches

_SHOWN = 60


def nearest(name: str, known: Collection[str], *, cutoff: float = 0.6) -> str | None:
    """The one of `known` that `name` was probably meant to be, whatever its case and dashes."""
    found = get_close_matches(name[:_SHOWN].lower().replace("-", "_"), known, n=1, cutoff=cutoff)
    return found[0] if found else None


def unknown(what: str, name: str, known: Collection[str]) -> str:
    """The text of a refusal: `unknown parameter 'explian'; did you mean 'explain'?`, or a list of known names."""
    near = nearest(name, known)
    if near is not None:
        return f"unknown {what} {name[:_SHOWN]!r}; did you mean {near!r}?"
    return f"unknown {what} {name[:_SHOWN]!r}; known here: {', '.join(known) or 'none'}"
