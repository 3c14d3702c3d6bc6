"""The page in plain words: each sentence is a figure of the card, and the worst comes first."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from tests.training.evaluate.test_card import adaptive, card
from training.errors import TrainingError
from training.evaluate.card import check, page_of, titled
from training.evaluate.harness.shown import percent
from training.evaluate.presentation.claims import Claim, Share, claims
from training.evaluate.presentation.plain import GROUPS, PLAIN_SINCE, PRICE, TITLE, UNKNOWN, limitations, plain
from training.evaluate.verify import plain_problems
from training.recipes.evaluation import Bound

CARDS = sorted((Path(__file__).resolve().parents[3] / "models").glob("*/card.json"))
ORDER = [
    "How to read this page",
    GROUPS["fails"],
    GROUPS["undecided"],
    GROUPS["dearer"],
    UNKNOWN,
    GROUPS["holds"],
    PRICE,
]


def told(content: dict[str, Any], bounds: list[Bound] | None = None) -> dict[str, list[str]]:
    return {part.title: list(part.sentences) for part in plain(content, check(content["figures"], bounds or []))}


def measured(content: object) -> set[str]:
    """Every number of a card as a page may print it: shares with one and two decimals, counts, and what names hold."""
    if isinstance(content, dict):
        return {text for key, value in content.items() for text in {*re.findall(r"[\d.]+", key), *measured(value)}}
    if isinstance(content, list):
        return {text for value in content for text in measured(value)}
    if isinstance(content, str):
        return set(re.findall(r"[\d.]+", content))
    if isinstance(content, bool) or content is None:
        return set()
    assert isinstance(content, int | float)
    share = {f"{100 * number:.{digits}f}" for number in (content, 1 - content) for digits in (0, 1, 2)}
    return {*share, f"{content:,.0f}", f"{content:g}"}


@pytest.mark.parametrize("path", CARDS, ids=lambda path: path.parent.name)
def test_a_shipped_page_says_nothing_that_the_card_does_not(path: Path) -> None:
    content = json.loads(path.read_text("utf-8"))
    known = measured({key: value for key, value in content.items() if key not in ("plain", "outcomes")})
    bounds = content["settings"]["bounds"]
    known |= {str(len(bounds)), "95", "10", "1", "5", "255", "7x7"}  # the level, the limit, alphas, the scale of eps
    for part in content["plain"]:
        for sentence in part["sentences"]:
            numbers = re.findall(r"\d[\d.,]*\d|\d", re.sub(r"`[^`]*`", "", sentence))
            assert [number for number in numbers if number not in known] == [], sentence


@pytest.mark.parametrize("path", CARDS, ids=lambda path: path.parent.name)
def test_every_sentence_on_an_attack_has_its_interval_and_n(path: Path) -> None:
    content = json.loads(path.read_text("utf-8"))
    found = claims(content)
    assert found
    for claim in found:
        assert re.search(r"% \([\d.]+ to [\d.]+\)", claim.text), claim.text
        assert f"n = {claim.n:,}" in claim.text
    assert [claim.worst for claim in found] == sorted((claim.worst for claim in found), reverse=True)


@pytest.mark.parametrize("path", CARDS, ids=lambda path: path.parent.name)
def test_the_worst_stands_before_praise_on_every_rendering(path: Path) -> None:
    content = json.loads(path.read_text("utf-8"))
    titles = [part["title"] for part in content["plain"]]
    assert titles == [title for title in ORDER if title in titles]
    page, report = (path.with_name(name).read_text("utf-8") for name in ("card.md", "report.html"))
    assert page.index(f"## {TITLE}") < page.index("## Figures and bounds") < page.index("\n| ")
    assert report.index(f"<h2>{TITLE}</h2>") < report.index("<table")
    for part in content["plain"]:
        assert f"### {part['title']}\n\n- {part['sentences'][0]}" in page
        assert report.count(f"<h3>{part['title']}</h3>") == 1


@pytest.mark.parametrize(
    ("shares", "group"),
    [
        ([(0.5, (0.4, 0.6)), (0.2, (0.11, 0.3))], "fails"),
        ([(0.5, (0.4, 0.6)), (0.05, (0.02, 0.1))], "dearer"),
        ([(0.05, (0.02, 0.3)), (0.0, (0.0, 0.02))], "dearer"),
        ([(0.5, (0.4, 0.6)), (0.05, (0.02, 0.11))], "fails"),
        ([(0.05, (0.02, 0.2)), (0.05, (0.02, 0.11))], "undecided"),
        ([(0.05, (0.02, 0.1)), (0.01, (0.0, 0.02))], "holds"),
        ([(0.0, None), (0.0, None)], "undecided"),
        ([(0.0, (0.0, 0.28))], "undecided"),
    ],
)
def test_an_attack_is_held_against_only_by_the_end_of_its_interval(shares: list[Any], group: str) -> None:
    found = [Share(value, limits, alpha) for (value, limits), alpha in zip(shares, (0.01, 0.05), strict=False)]
    assert Claim("x", "", 10, found).group == group


def test_missed_bounds_and_failed_checks_come_first() -> None:
    content = card([], checks=[{"check": "control", "title": "driven to 0", "passed": False, "seen": "9 %"}])
    bounds = [
        Bound(figure="pgd50_8", kind="at_least", bound=0.6),
        Bound(figure="accuracy_answering", kind="at_least", bound=0.5),
    ]
    found = told(content, bounds)
    first, second = found[GROUPS["fails"]][:2]
    assert "overstate the defence: driven to 0." in first
    assert second == (
        "A bound is missed: companion under PGD-50, 8/255 is 50.0 %, and should be at least 60.0 %, n = 1,000."
    )
    assert found[GROUPS["holds"]][-1].startswith("1 of the 2 bounds")


def test_what_was_not_measured_is_named_and_nothing_is_said_of_it() -> None:
    content = card([], missing=["queries", "adaptive_8"], titles={"units": {"queries": "queries over HTTP"}})
    found = told(content)
    assert found[UNKNOWN][:2] == [
        "No attacker who knows the defence was tried: the card does not show that it holds there.",
        "Nothing is known of: queries over HTTP; `adaptive_8`.",
    ]
    assert found[PRICE][-1] == "The card does not state what an answer costs in forward passes."
    assert any("queries over HTTP" in text for text in limitations(content))
    assert not any("who knows the defence was tried" in text for text in limitations(card([], **adaptive())))


def test_where_all_networks_answer_together_the_page_says_what_is_with_that_and_what_without() -> None:
    content = json.loads((CARDS[0].parents[1] / "gtsrb" / "card.json").read_text("utf-8"))
    page = told(content)
    assert any("name the pool" in sentence for sentence in page["How to read this page"])
    first, second = page[PRICE][:2]
    assert "as served, with the pool" in first
    assert "without the pool" in second
    sentences = [sentence for sentences in page.values() for sentence in sentences]
    for name in ("pool_adaptive", "pool_adaptive_4"):
        row = content[name]
        assert any(f"{row['eps']}/255 gets a wrong answer of the pool" in sentence for sentence in sentences)
    right = percent(content["pool_unaware"]["rain"]["right"])
    assert any(sentence.startswith("Rain") and f"answer is right on {right}" in sentence for sentence in sentences)
    del content["pool"]
    assert not any("name the pool" in sentence for sentence in told(content)["How to read this page"])


def test_a_malformed_section_is_named() -> None:
    with pytest.raises(TrainingError, match=r"no such section: pgd_4\.n"):
        told(card([], unaware={"pgd_4": {"n": "many"}}))


def test_cards_of_earlier_schemas_have_pages_without_it() -> None:
    """`palisade verify` compares a page with a rendering, and those pages were made without it."""
    content = card([])
    assert f"## {TITLE}" in page_of(content, [])
    assert TITLE not in page_of(content | {"schema_version": PLAIN_SINCE - 1}, [])


def test_altered_sentences_on_the_card_are_found() -> None:
    content = titled(card([], **adaptive()))
    assert plain_problems(content) == []
    altered = json.loads(json.dumps(content).replace(percent(0.08), percent(0.01)))
    assert altered != content
    assert plain_problems(altered)
    assert plain_problems({key: value for key, value in content.items() if key != "plain"}) == []
