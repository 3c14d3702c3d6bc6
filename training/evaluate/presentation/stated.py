"""Whether a card's page states the numbers of its card: tables row by row, text number by number; wording may differ.

The page is compared with a rendering of `card.json` made now. A row of a table is compared by its numbers and verdict
words ("yes", "FAILED"), without regard to other words and to the order of columns, rows and sections. In text and in
headings of tables, measured numbers (those with a decimal point or a thousands separator, and every n) have to be those
of the rendering, as often. Other numbers, such as the 5 of "alpha 5 %", may come or go with the wording, but none may
stand where another one stood, and there may be none that the rendering has not.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence

VERDICTS = {"yes", "no", "not measured", "passed", "failed", "-"}
STATUS = ("failed", "incomplete", "complete")
# Dates and versions are one token each; a minus sign belongs to a number that it stands right before.
_NUMBER = re.compile(r"(?<![\w.])-?\d+(?:[,.:-]\d+)*(?: ?%)?|\d+(?:[,.]\d+)*(?: ?%)?")
_MEASURED = re.compile(r"\d[.,]\d")
_COUNT = re.compile(r"\bn = ([\d,]+)")

Row = tuple[str, ...]


def misstated(page: str, rendered: str, headline: int) -> list[str]:
    """What `page` states that the rendering does not, and what it leaves out, one phrase each; none if they agree.

    The first `headline` rows of the first table are compared one by one, in order.
    """
    (tables, text), (right_tables, right_text) = _split(page), _split(rendered)
    problems = _status(text, right_text)
    if headline:
        mine, right = ([_row(cells) for cells in (each[0][1:] if each else [])] for each in (tables, right_tables))
        if mine != right:
            first = next((n for n, (a, b) in enumerate(zip(mine, right, strict=False)) if a != b), len(right))
            problems.append(f"row {first + 1} of the headline table is not that of the card")
    rows, right_rows = (Counter(_row(row) for table in each for row in table[1:]) for each in (tables, right_tables))
    problems += [f"a row states {_described(row)}, which the card does not" for row in rows - right_rows]
    problems += [f"the row of {_described(row)} is missing" for row in right_rows - rows]
    shown, right_shown = (
        "\n".join([*lines, *(" ".join(cells) for table in each for cells in table[:1])])
        for each, lines in ((tables, text), (right_tables, right_text))
    )
    measured, right_measured = (Counter(_measured(each)) for each in (shown, right_shown))
    problems += [f"the text leaves out {number}" for number in right_measured - measured]
    numbers, right_numbers = (Counter(_numbers(each)) for each in (shown, right_shown))
    more, less = numbers - right_numbers, right_numbers - numbers
    known = set(_numbers(rendered))
    wrong = {number for number in more if less or _MEASURED.search(number) or number not in known}
    return problems + [f"the text states {number}, which the card does not" for number in sorted(wrong)]


def _split(page: str) -> tuple[list[list[list[str]]], list[str]]:
    """Tables as rows of cells, the heading first and the rule left out, and the other lines."""
    tables: list[list[list[str]]] = []
    text, inside = list[str](), False
    for line in page.splitlines():
        if line.lstrip().startswith("|"):
            cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
            if not inside:
                tables.append([])
            if not all(set(cell) <= set("-: ") and "---" in cell for cell in cells):
                tables[-1].append(cells)
            inside = True
        else:
            text.append(line)
            inside = False
    return tables, text


def _row(cells: Sequence[str]) -> Row:
    """The numbers and verdicts of a row, sorted."""
    verdicts = (cell.strip("*").lower() for cell in cells)
    return tuple(sorted([*_numbers(" ".join(cells)), *(word for word in verdicts if word in VERDICTS)]))


def _numbers(text: str) -> Iterable[str]:
    return (found.group().replace(" ", "") for found in _NUMBER.finditer(text))


def _measured(text: str) -> Iterable[str]:
    """Measured numbers of the text; each n is listed once more, as such."""
    yield from (number for number in _numbers(text) if _MEASURED.search(number))
    yield from (f"n = {found.group(1)}" for found in _COUNT.finditer(text))


def _status(text: Sequence[str], right: Sequence[str]) -> list[str]:
    """The status is the first line in bold; its first status word is compared."""
    mine, wanted = (
        next((word for word in re.findall(r"\w+", line.lower()) if word in STATUS), None)
        for lines in (text, right)
        for line in [next((line for line in lines if line.startswith("**")), "")]
    )
    return [] if mine == wanted else [f"the page states {mine or 'no status'}, the card {wanted}"]


def _described(row: Row) -> str:
    return ", ".join(row) or "no number"
