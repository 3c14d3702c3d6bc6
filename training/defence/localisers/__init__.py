"""Localisers of the region of attack, one file each: the list of them and the one that is served by default."""

from __future__ import annotations

from training.defence.localisers.localiser import Localiser
from training.defence.localisers.texture_colour import TextureColour
from training.errors import TrainingError
from training.util.registry import by_name

LOCALISERS: dict[str, Localiser] = by_name(
    TextureColour(),
)
LOCALISER = "texture_colour"


def localiser_named(name: str) -> Localiser:
    """The localiser `name`; `TrainingError` if there is none."""
    if name not in LOCALISERS:
        raise TrainingError(f"there is no localiser {name!r}; there are {', '.join(LOCALISERS)}")
    return LOCALISERS[name]
