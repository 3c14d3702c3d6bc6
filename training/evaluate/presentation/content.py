"""What a card shows a reader, as chapters, sections and tables that the page and the report lay out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from training.evaluate.harness.shown import Body, Table, percent
from training.evaluate.harness.unit import QUESTIONS, Place, Question

STATUS = {
    "failed": "FAILED: a self-check of the harness did not pass; figures of this card overstate the defence.",
    "incomplete": "Incomplete: units are missing or used fewer images than the settings ask; see the end.",
    "complete": "Complete: every unit was measured, and every self-check passed.",
}
FIGURES = "Figures and bounds"
KEPT = {None: "not measured", True: "yes", False: "**no**"}
PASSED = {None: "not measured", True: "passed", False: "**FAILED**"}
# Sections that the card has of itself: title and explaining text.
OWN = {
    "forwards": (
        "Forward passes",
        "What an image costs in forward passes of the answering network, counted in the graphs, not timed.",
    ),
    "detector": ("What the defence looks at", "The scores of the detector, and what finds the region of attack."),
    "checks": ("Self-checks", "Signs that an attack is too weak or that gradients are masked. Passing proves nothing."),
    "samples": (
        "Samples",
        (
            "Chosen by a fixed rule (`training/bundling/samples.py`). Before is the answer to the image as it came, "
            "after the one to the neutralised image, served what the caller gets under `sanitize`."
        ),
    ),
    "units": ("What was measured", "Each unit, on how many images, when, and how long it took."),
}
Card = Mapping[str, Any]


@dataclass(frozen=True)
class Section:
    """A heading and what stands below it: text with `code` and **emphasis**, and tables."""

    title: str
    body: Body


@dataclass(frozen=True)
class Chapter:
    """A question, and the sections that answer it."""

    title: str
    sections: Sequence[Section]


def headline(bounds: Sequence[Card]) -> Table:
    """The figures that bounds are put on; `bounds` are the rows of `card.check`."""
    signs = {"at_least": ">=", "at_most": "<="}
    return Table(
        ("figure", "value", "bound", "kept", "n"),
        [
            (
                row["title"],
                percent(row["value"]),
                f"{signs[row['kind']]} {percent(row['bound'])}",
                KEPT[row["pass"]],
                f"{row['n']:,}",
            )
            for row in bounds
        ],
    )


def introduction(card: Card) -> str:
    return (
        f"Measured until {card['date']} by `{card['command']}` ({card['device']}), seed {card['settings']['seed']}, on "
        "the system as served: PNG images through the gateway's decoder, ONNX Runtime session, calibration and policy "
        f"`sanitize`. In brackets: 95 % bootstrap intervals, {_resampled(card)}."
    )


def _resampled(card: Card) -> str:
    frames = card["settings"].get("track_frames")
    if frames is None:
        return "by group where the test split has groups, else by image"
    return (
        f"by track: the test images are frames of tracks of {frames}, which the data set does not name; they are "
        "inferred from likeness (`training/evaluate/harness/tracks.py`)"
    )


def chapters(card: Card, places: Sequence[Place[Any]]) -> list[Chapter]:
    """Everything that was measured, by question; `places` in the order of the page.

    `TrainingError` where a section of the card is malformed.
    """
    answers: dict[Question, list[Section]] = {question: [] for question in QUESTIONS}
    for place in places:
        if card.get(place.key) and (body := place.body(card[place.key])):
            answers[place.question].append(Section(place.title, body))
    own = {
        "forwards": _forwards(card),
        "detector": _detector(card),
        "checks": _checks(card),
        "samples": _samples(card),
        "units": _units(card),
    }
    answers["measured"] += [Section(OWN[key][0], [OWN[key][1], *body]) for key, body in own.items() if body]
    return [Chapter(QUESTIONS[question], found) for question, found in answers.items() if found]


def section_titles(places: Sequence[Place[Any]]) -> dict[str, dict[str, str]]:
    """{key of the card: {title, text, question}} of every section that a card may have."""
    found = {place.key: {"title": place.title, "text": place.text, "question": place.question} for place in places}
    own = {key: {"title": title, "text": text, "question": "measured"} for key, (title, text) in OWN.items()}
    return found | own


def _detector(card: Card) -> Body:
    rows = [
        (
            row["title"],
            f"`{row['name']}`",
            "region of attack" if row["kind"] == "localiser" else _part_of(row),
            row["meaning"],
        )
        for row in card.get("detector", [])
    ]
    return [Table(("score or localiser", "name", "used as", "meaning"), rows)] if rows else []


def _part_of(row: Card) -> str:
    """The role of a score in the verdict."""
    parts = [text for key, text in (("fused", "fused"), ("guards", "guard")) if row[key]]
    return " and ".join(parts) or "reported alone"


def _checks(card: Card) -> Body:
    rows = [(row["title"], PASSED[row["passed"]], row["seen"]) for row in card.get("checks", [])]
    return [Table(("check", "", "seen"), rows)] if rows else []


def _samples(card: Card) -> Body:
    rows = [
        (
            name,
            row["truth"],
            "yes" if row["flagged"] else "no",
            f"{row['p_value']:.4f}",
            row["before"],
            row["after"] or "-",
            row["label"],
        )
        for name, row in card.get("samples", {}).items()
    ]
    return [Table(("file", "truth", "flagged", "p-value", "before", "after", "served"), rows)] if rows else []


def _units(card: Card) -> Body:
    body: Body = []
    if card.get("missing"):
        body.append(f"Not measured: {', '.join(f'`{name}`' for name in card['missing'])}.")
    if card.get("reduced"):
        body.append(f"On fewer images than the settings ask: {', '.join(f'`{name}`' for name in card['reduced'])}.")
    named: Mapping[str, Card] = card.get("titles", {}).get("references", {})
    rows = [
        (row["unit"], f"{row['n']:,}", row["date"], f"{row['seconds']:,.0f} s", *_references(row["unit"], named))
        for row in card.get("units", [])
    ]
    if not rows:
        return body
    taxonomies: Card = card["titles"]["taxonomies"] if named else {}
    body.append(Table(("unit", "images", "date", "took", *taxonomies.values()), rows))
    for key, taxonomy in taxonomies.items():
        names = sorted({name for row in card["units"] for name in named.get(row["unit"], {}).get(key, [])})
        if names:
            body.append(f"{taxonomy}: {'; '.join(names)}.")
    return body


def _references(unit: str, named: Mapping[str, Card]) -> list[str]:
    """Numbers of sections and ids of techniques of the public taxonomies, where the card has any."""
    if not named:
        return []
    rows = (named.get(unit, {}).get(key, []) for key in ("nist", "atlas"))
    return [", ".join(name.partition(" ")[0] for name in names) or "-" for names in rows]


def _forwards(card: Card) -> Body:
    parts = {"screen": "screen (cascade)", "verdict": "verdict", "full": "verdict and explanation"}
    found: Card = card.get("forwards", {})
    rows = [(title, f"{found[part]:.2f}") for part, title in parts.items() if part in found]
    return [Table(("part", "forwards"), rows), f"One forward: {found['macs']:,} multiply-accumulates."] if rows else []
