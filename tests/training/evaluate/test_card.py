from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest

from training.evaluate.card import check, write_card
from training.evaluate.presentation.page import markdown
from training.evaluate.presentation.report import Drawn, html, marked
from training.recipes.evaluation import FIGURES, Bound, Evaluation
from training.util.charts import bar_chart, line_chart

VALUES = {
    "accuracy_answering": 0.98,
    "accuracy_companion": 0.96,
    "pgd50_4": 0.7,
    "pgd50_8": 0.5,
    "flagged_0.05": 0.06,
    "joint_excess_8": 0.01,
}
FIGURE_ROWS = {name: {"value": value, "n": 1000, "seed": 0} for name, value in VALUES.items()}


def card(bounds: list[Bound], **more: Any) -> dict[str, Any]:
    at = {"measured_fpr": 0.01, "flagged": 0.5, "flagged_interval": [0.4, 0.6], "max_softmax": None, "undetected": 0.25}
    row = {"n": 10, "fooled": 8, "recovered": 0.125, "alpha_0.01": at, "alpha_0.05": at}
    patch = {"side": 7, "fooled": 8, "recovered": 0.125, "random_windows": 0.01, "beyond": 0.115}
    return {
        "bundle": "toy",
        "version": "1.2.3",
        "status": "complete",
        "missing": [],
        "reduced": [],
        "date": "2026-01-02",
        "command": "palisade evaluate x",
        "device": "CPU",
        "checks": [],
        "units": [],
        "settings": Evaluation(bounds=bounds).model_dump(mode="json"),
        "figures": FIGURE_ROWS,
        "benign": {
            "n": 1000,
            "accuracy_served": 0.97,
            "flagged": {"0.01": 0.009, "0.05": 0.06},
            "neutralised": 0.04,
            "harmed": 0.0015,
            "harmed_interval": [0.001, 0.002],
        },
        "unaware": {"pgd_4": row, "patch": row | {"side": 7}},
        "samples": {},
        "patches": {"patch": patch | {"beyond_interval": [0.05, 0.2]}},
        **more,
    }


def adaptive() -> dict[str, Any]:
    row = {"alpha_0.01": 0.08, "alpha_0.05": 0.04, "companion": 0.02, "half": 0.01, "half_interval": [0.0, 0.03]}
    systems = {name: {f"fpr_{rate}": 0.5 for rate in ("0.01", "0.05", "0.1")} for name in ("answering", "all")}
    return {
        "adaptive": {
            "n": 5,
            "steps": 3,
            "targets": 1,
            "eps_4": row,
            "eps_8": row | {"cascade_0.01": 0.5, "cascade_0.05": 0.25},
        },
        "systems": {"eps_8": systems},
        "stages": {"eps_8": {"joint": 3}},
    }


def page(content: dict[str, Any]) -> str:
    bounds = [Bound.model_validate(bound) for bound in content["settings"]["bounds"]]
    return markdown(content, check(content["figures"], bounds))


@pytest.mark.parametrize(
    ("kind", "bound", "kept"),
    [
        ("at_least", 0.4, True),
        ("at_least", 0.5, True),
        ("at_least", 0.51, False),
        ("at_most", 0.6, True),
        ("at_most", 0.5, True),
        ("at_most", 0.49, False),
    ],
)
def test_a_bound_holds_at_itself_and_on_its_side(kind: str, bound: float, kept: bool) -> None:
    (row,) = check(FIGURE_ROWS, [Bound(figure="pgd50_8", kind=kind, bound=bound)])
    assert row == {
        "figure": "pgd50_8",
        "kind": kind,
        "bound": bound,
        "title": FIGURES["pgd50_8"],
        "value": 0.5,
        "n": 1000,
        "seed": 0,
        "pass": kept,
    }


def test_what_was_not_measured_keeps_no_bound() -> None:
    (row,) = check(FIGURE_ROWS, [Bound(figure="autoattack_8", kind="at_least", bound=0.0)])
    assert row["pass"] is None
    assert "| - | >= 0.0 % | not measured | 0 |" in page(card([Bound(figure="autoattack_8", kind="at_least", bound=0)]))


def test_the_page_has_every_bound_and_marks_the_missed_one() -> None:
    bounds = [Bound(figure=name, kind="at_least", bound=0.01) for name in VALUES if name != "pgd50_4"]
    lines = page(card([*bounds, Bound(figure="pgd50_4", kind="at_least", bound=0.75)])).splitlines()
    rows = {name: [line for line in lines if line.startswith(f"| {FIGURES[name]} |")] for name in VALUES}
    assert all(len(found) == 1 for found in rows.values())
    assert [name for name, (line,) in rows.items() if "**no**" in line] == ["pgd50_4"]
    assert rows["pgd50_4"] == [f"| {FIGURES['pgd50_4']} | 70.0 % | >= 75.0 % | **no** | 1,000 |"]


def test_tables_are_whole() -> None:
    """Rows of as many cells as their heading, whichever units were run."""
    behind = {
        "n": 1000,
        "screened": 0.87,
        "flagged": {"0.01": 0.008, "0.05": 0.041},
        "attacks": {"pgd_4": {"fooled": 8, "screened": 0.0, "alpha_0.01": 1.0, "alpha_0.05": 1.0}},
    }
    without = page(card([]))
    found = page(card([], **adaptive(), cascade=behind))
    for table in found.split("\n\n"):
        lines = [line for line in table.splitlines() if line.startswith("|")]
        assert len({line.count("|") for line in lines}) <= 1, table
    assert "| noisy patch, 7x7 | 10 | 8 | 1 % | 1.0 % | 50.0 % (40.0 to 60.0) | - | 12.5 % | 25.0 % |" in found
    assert "| noisy patch, 7x7 | 8 | 12.5 % | 1.0 % | 11.5 % (5.0 to 20.0) |" in found
    assert "| 8/255 | all together | 8.0 % | 4.0 % |" in found
    assert "| 8/255 | companion alone, same effort | 2.0 % | 2.0 % |" in found
    assert "| 8/255 | all behind the cascade | 50.0 % | 25.0 % |" in found
    assert "| PGD 4/255 | 8 | 0.0 % | 100.0 % | 100.0 % |" in found
    assert "wrong one on 0.15 % (0.10 to 0.20)." in found
    assert "knows everything" not in without


def test_the_page_of_a_bundle_without_a_companion_does_not_speak_of_one() -> None:
    row = {"alpha_0.01": 0.5, "alpha_0.05": 0.25}
    systems = {"answering": {f"fpr_{rate}": 0.5 for rate in ("0.01", "0.05", "0.1")}}
    found = page(
        card(
            [],
            companion=False,
            adaptive={"n": 5, "steps": 3, "targets": 1, "eps_8": row},
            systems={"eps_8": systems},
            doubled={"n": 4, "steps": 3, "once": {"served": 0.25}, "twice": {"served": 0.5}},
            control={"n": 9, "eps": 16, "steps": 5, "restarts": 3, "accuracy": 0.0},
            curve={"n": 9, "steps": 5, "answering": {"0": 0.9, "8": 0.0}},
        )
    )
    assert [line for line in found.splitlines() if "companion" in line and "has no companion" not in line] == []
    assert "25.0 % becomes 50.0 % on the system as served." in found
    assert "| control: the undefended network, PGD-5, 3 restarts | 16/255 | 0.0 % | 9 |" in found


def test_a_failed_or_incomplete_card_says_so_first() -> None:
    failed = {"checks": [{"check": "control", "title": "driven to 0", "passed": False, "seen": "9 % left"}]}
    found = page(card([], status="failed", **failed))
    assert found.splitlines()[2].startswith("**FAILED")
    assert "| driven to 0 | **FAILED** | 9 % left |" in found
    found = page(card([], status="incomplete", missing=["curve"], reduced=["pgd_8"]))
    assert found.splitlines()[2].startswith("**Incomplete")
    assert "Not measured: `curve`." in found
    assert "On fewer images than the settings ask: `pgd_8`." in found


def test_the_report_needs_nothing_but_itself() -> None:
    curve = {"n": 9, "steps": 5, "answering": {"0": 0.9, "8": 0.0}, "companion": {"0": 0.8, "8": 0.4}}
    content = card([Bound(figure="pgd50_8", kind="at_least", bound=0.6)], **adaptive(), curve=curve)
    content["samples"] = {
        "<b>.png": {"truth": "<i>", "label": "x", "before": "x", "after": None, "flagged": True, "p_value": 0.1}
    }
    picture = "data:image/png;base64,AA=="
    cell = {"kind": "clean", "image": picture, "map": picture, "label": "a & b", "right": False, "flagged": True}
    figures = {"clean": {"mean": 0.9, "sd": 0.01}, "pgd_8": {"mean": 0.4, "sd": float("nan")}}
    arms = {"at": figures, "both": figures}
    drawn = Drawn({"pgd_4": {"system": [(0.0, 0.0), (0.05, 0.9), (1.0, 1.0)]}}, [{"cells": [cell]}], {"summary": arms})
    found = html(content, check(content["figures"], [Bound(figure="pgd50_8", kind="at_least", bound=0.6)]), drawn)
    assert not re.search(r'(?:src|href)="(?!data:)', found)
    assert "http" not in found
    assert "&lt;i&gt;" in found
    assert "a &amp; b" in found
    assert "<strong>no</strong>" in found
    for title in ("Security curve", "ROC: PGD 4/255", "adaptive attack at 8/255", "Ablation at equal budget"):
        assert title in found


def test_marks_are_html_and_the_rest_is_escaped() -> None:
    assert marked("`a<b` and **c**") == "<code>a&lt;b</code> and <strong>c</strong>"


def test_charts_are_well_formed_and_inside_their_frame() -> None:
    lines = line_chart(
        {"one": [(0, 0), (255, 1)], "two & three": [(8, 0.5)]},
        label="a <label>",
        x_label="x",
        y_label="y",
        x_ticks=[0, 8, 255],
    )
    bars = bar_chart({"g": {"a": (0.5, 0.1), "b": (1.4, 0.0)}}, label="bars", y_label="y")
    for chart in (lines, bars):
        tree = ET.fromstring(chart)  # noqa: S314  # our own
        svg = tree.find("svg")
        _, _, width, height = map(float, svg.get("viewBox").split())
        for point in " ".join(p.get("points") for p in svg.iter("polyline")).split():
            x, y = map(float, point.split(","))
            assert 0 <= x <= width
            assert 0 <= y <= height
        assert all(0 <= float(rect.get("height")) <= height for rect in svg.iter("rect"))


def test_card_files_say_the_same(tmp_path: Path) -> None:
    content = card([Bound(figure="pgd50_8", kind="at_least", bound=0.5)])
    write_card(tmp_path, content)
    assert json.loads((tmp_path / "card.json").read_text()) == content
    assert (tmp_path / "card.md").read_text() == page(content)
    assert "robustness report" in (tmp_path / "report.html").read_text()
