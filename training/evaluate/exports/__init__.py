"""Cards in public formats: one line for each, with the module that makes it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

from gateway.core.loading import Bundle
from training.evaluate.exports.cyclonedx import cyclonedx
from training.evaluate.exports.in_toto import in_toto
from training.evaluate.exports.robustbench import robustbench
from training.evaluate.exports.sarif import sarif
from training.evaluate.exports.source import Source, source_of

Format = Literal["cyclonedx", "in-toto", "robustbench", "sarif"]
FORMATS: dict[Format, Callable[[Source], dict[str, Any]]] = {
    "cyclonedx": cyclonedx,
    "in-toto": in_toto,
    "robustbench": robustbench,
    "sarif": sarif,
}


def export_card(bundle: Bundle, format_: Format) -> dict[str, Any]:
    """The card of a bundle as JSON content of a public format.

    `TrainingError` without a card, for a card of an earlier schema, and where the format asks for a figure that the
    card does not have.
    """
    return FORMATS[format_](source_of(bundle))
