"""An altered number on a card's page is found wherever it stands; other words are not."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from training.evaluate.presentation.stated import misstated

ROOT = Path(__file__).resolve().parents[3]
CARDS = sorted((ROOT / "models").glob("*/card.json"))
KEPT_WORDS = {"yes", "no", "not", "measured", "passed", "failed", "incomplete", "complete", "n"}
PAGE = """\
# Robustness card: toy 1.2.3

**Complete: all is well.**

Measured until 2026-01-02, seed 0. In brackets: 95 % intervals.

| figure | value | bound | kept | n |
| --- | --- | --- | --- | --- |
| clean accuracy | 97.6 % | >= 97.5 % | yes | 12,630 |
| under attack | -8.2 % | <= 2.0 % | **no** | 500 |

## Something

5 targets x 60 steps, n = 500: 44.4 % (39.1 to 50.5) at alpha 5 %.

| eps | attacked | alpha 1 % |
| --- | --- | --- |
| 4/255 | all | 68.2 % (62.6 to 74.3) |
| 8/255 | all | 89.0 % (85.3 to 92.6) |
"""


@pytest.mark.parametrize("path", CARDS, ids=lambda path: path.parent.name)
def test_every_altered_number_of_a_shipped_page_is_found(path: Path) -> None:
    page = path.with_name("card.md").read_text("utf-8")
    rows = len(json.loads(path.read_text("utf-8"))["settings"]["bounds"])
    assert misstated(page, page, rows) == []
    numbers = list(re.finditer(r"\d+", page))
    for number in numbers[::11]:
        digit = str((int(number.group()[-1]) + 1) % 10)
        altered = page[: number.end() - 1] + digit + page[number.end() :]
        assert misstated(altered, page, rows), page[number.start() - 40 : number.end() + 20]


@pytest.mark.parametrize("path", CARDS, ids=lambda path: path.parent.name)
def test_other_words_are_no_lie(path: Path) -> None:
    page = path.with_name("card.md").read_text("utf-8")
    rows = len(json.loads(path.read_text("utf-8"))["settings"]["bounds"])

    def reworded(word: re.Match[str]) -> str:
        return word.group() if word.group().lower() in KEPT_WORDS else word.group()[::-1]

    other = re.sub(r"(?<![\w=])[A-Za-z]+(?!\w)", reworded, page)
    assert other != page
    assert misstated(other, page, rows) == []


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("97.6 %", "98.6 %"),
        (">= 97.5 %", ">= 96.5 %"),
        ("-8.2 %", "8.2 %"),
        ("**no**", "yes"),
        ("12,630", "12,631"),
        ("| 500 |", "| 600 |"),
        ("Complete", "Incomplete"),
        ("2026-01-02", "2026-01-03"),
        ("60 steps", "95 steps"),
        ("n = 500", "n = 60"),
        ("39.1", "50.5"),
        ("(85.3 to 92.6)", "(85.3 to 92.7)"),
        ("8/255", "4/255"),
        ("| 4/255 | all | 68.2 % (62.6 to 74.3) |\n", ""),
        ("## Something", "It stops 99 % of attacks."),
        ("## Something", "It stops 97.6 % of attacks."),
        ("alpha 5 %.", "alpha 5 %, 44.4 % of them twice."),
    ],
)
def test_an_altered_page_is_found(old: str, new: str) -> None:
    assert PAGE.count(old) >= 1
    assert misstated(PAGE.replace(old, new, 1), PAGE, 2)


def test_rows_of_the_headline_that_changed_places_are_found() -> None:
    first, second = (line for line in PAGE.splitlines() if "clean accuracy" in line or "under attack" in line)
    swapped = PAGE.replace(first, "x").replace(second, first).replace("x", second, 1)
    assert misstated(swapped, PAGE, 2) == ["row 1 of the headline table is not that of the card"]
    values = PAGE.replace("97.6 %", "y").replace("-8.2 %", "97.6 %").replace("y", "-8.2 %")
    assert misstated(values, PAGE, 2)[0] == "row 1 of the headline table is not that of the card"


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("all is well", "everything was measured"),
        ("clean accuracy", "accuracy on clean images"),
        ("In brackets: 95 % intervals.", "Intervals stand in brackets."),
        ("## Something", "## An attacker who knows\n\nMore words, and no number."),
        (" at alpha 5 %.", " at the larger alpha."),
        ("| eps | attacked | alpha 1 % |", "| radius | who is attacked | alpha 1 % |"),
    ],
)
def test_a_page_with_other_words_is_fine(old: str, new: str) -> None:
    assert old in PAGE
    assert misstated(PAGE.replace(old, new), PAGE, 2) == []


def test_an_empty_page_states_too_little() -> None:
    assert misstated("", PAGE, 2)
