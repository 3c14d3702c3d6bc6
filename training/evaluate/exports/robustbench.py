"""A card as an entry of RobustBench: the JSON of its `model_info` (Croce et al. 2021, arXiv 2010.09670)."""

from __future__ import annotations

from typing import Any

from training.errors import TrainingError
from training.evaluate.exports.source import Source
from training.evaluate.harness.shown import percent

EPS = 8
_NOT_STATED = "N/A"


def robustbench(source: Source) -> dict[str, Any]:
    """The companion alone, Linf 8/255: RobustBench ranks classifiers that always answer, by AutoAttack.

    The served system answers by another network and may flag, so that its own figures stand in the footnote. Recipes
    train on one data set, hence no additional data. Link, authors and venue are for whoever submits it.
    `TrainingError` for a card without AutoAttack.
    """
    card, name = source.card, f"autoattack_{EPS}"
    figures = card["figures"]
    if missing := [figure for figure in ("accuracy_companion", name) if figure not in figures]:
        raise TrainingError(
            f"robustbench: the card has no figure {missing[0]}; RobustBench lists AutoAttack's accuracies"
        )
    left = _hundredth(figures[name]["value"])
    return {
        "link": _NOT_STATED,
        "name": f"{card['bundle']} {card['version']}, companion network",
        "authors": _NOT_STATED,
        "additional_data": False,
        "number_forward_passes": 1,
        "dataset": str(source.manifest.data.get("name", card["bundle"])).rpartition(":")[2],
        "venue": _NOT_STATED,
        "architecture": _architecture(source),
        "eps": f"{EPS}/255",
        "clean_acc": _hundredth(figures["accuracy_companion"]["value"]),
        "reported": left,
        "autoattack_acc": left,
        "footnote": _footnote(source, figures[name]["n"]),
        "unreliable": card["status"] == "failed",
    }


def _footnote(source: Source, n: int) -> str:
    figures = source.card["figures"]
    text = f"Standard AutoAttack on {n} test images. These are figures of the companion alone, which answers no query."
    if joint := figures.get(f"joint_{EPS}"):
        text += (
            " The served system flags and neutralises: an attacker who knows it gets a wrong answer without a flag on "
            f"{percent(joint['value'])} of {joint['n']} images at alpha 5 %."
        )
    return text


def _architecture(source: Source) -> str:
    model = source.manifest.training.get("companion", {}).get("model", {})
    parts = [f"{key} {_short(value)}" for key, value in model.items() if key != "arch" and value]
    return ", ".join([str(model.get("arch", _NOT_STATED)), *parts])


def _short(value: object) -> str:
    return "-".join(map(str, value)) if isinstance(value, list) else str(value)


def _hundredth(value: float) -> str:
    """A share in per cent with two decimals, as RobustBench writes it."""
    return f"{100 * value:.2f}"
