from __future__ import annotations

import json
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from tests.training.toy import CLASSES, SIDE
from training.evaluate.card import FIGURES, Bound, Evaluation, _passes, check, judged_by, markdown, write_card

VALUES = {
    "accuracy_answering": 0.98, "accuracy_companion": 0.96, "pgd50_4": 0.7, "pgd50_8": 0.5, "flagged_0.05": 0.06,
    "joint_excess_8": 0.01,
}  # fmt: skip
FIGURE_ROWS = {name: {"value": value, "n": 1000, "seed": 0} for name, value in VALUES.items()}


def card(bounds: list[Bound], **more: Any) -> dict[str, Any]:
    at = {"measured_fpr": 0.01, "flagged": 0.5, "max_softmax": None, "undetected": 0.25}
    row = {"n": 10, "fooled": 8, "recovered": 0.125, "alpha_0.01": at, "alpha_0.05": at}
    return {
        "bundle": "toy", "version": "1.2.3", "date": "2026-01-02", "command": "palisade evaluate x", "device": "CPU",
        "settings": Evaluation(bounds=bounds).model_dump(mode="json"), "figures": FIGURE_ROWS,
        "benign": {
            "n": 1000, "accuracy_served": 0.97, "flagged": {"0.01": 0.009, "0.05": 0.06},
            "neutralised": 0.04, "harmed": 0.0015,
        },
        "unaware": {"pgd_4": row, "patch": row | {"side": 7}},
        "samples": {},
        **more,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "bound", "kept"),
    [("at_least", 0.4, True), ("at_least", 0.5, True), ("at_least", 0.51, False),
     ("at_most", 0.6, True), ("at_most", 0.5, True), ("at_most", 0.49, False)],
)  # fmt: skip
def test_a_bound_holds_at_itself_and_on_its_side(kind: str, bound: float, kept: bool) -> None:
    (row,) = check(FIGURE_ROWS, [Bound(figure="pgd50_8", kind=kind, bound=bound)])
    assert row == {
        "figure": "pgd50_8", "kind": kind, "bound": bound, "title": FIGURES["pgd50_8"], "value": 0.5, "n": 1000,
        "seed": 0, "pass": kept,
    }  # fmt: skip


def test_the_page_has_every_bound_and_marks_the_missed_one() -> None:
    bounds = [Bound(figure=name, kind="at_least", bound=0.01) for name in FIGURES if name != "pgd50_4"]
    lines = markdown(card([*bounds, Bound(figure="pgd50_4", kind="at_least", bound=0.75)])).splitlines()
    rows = {title: [line for line in lines if line.startswith(f"| {title} |")] for title in FIGURES.values()}
    assert all(len(found) == 1 for found in rows.values())
    missed = [title for title, (line,) in rows.items() if "**no**" in line]
    assert missed == [FIGURES["pgd50_4"]]
    assert rows[missed[0]] == [f"| {missed[0]} | 70.0 % | >= 75.0 % | **no** | 1,000 |"]
    assert sum("| yes |" in line for line in lines) == len(bounds)


def test_tables_are_whole() -> None:
    """Rows of as many cells as their heading, whichever attacks were run."""
    found = {"n": 5, "steps": 3, "targets": 1} | {
        f"eps_{eps}": {"alpha_0.01": eps / 100, "alpha_0.05": eps / 200, "companion": eps / 400} for eps in (4, 8)
    }
    found["eps_8"] |= {"cascade_0.01": 0.5, "cascade_0.05": 0.25}
    behind = {
        "n": 1000, "screened": 0.87, "flagged": {"0.01": 0.008, "0.05": 0.041},
        "attacks": {"pgd_4": {"fooled": 8, "screened": 0.0, "alpha_0.01": 1.0, "alpha_0.05": 1.0}},
    }  # fmt: skip
    without = markdown(card([]))
    page = markdown(card([Bound(figure="flagged_0.05", kind="at_most", bound=0.075)], adaptive=found, cascade=behind))
    for table in page.split("\n\n"):
        lines = [line for line in table.splitlines() if line.startswith("|")]
        assert len({line.count("|") for line in lines}) <= 1, table
    assert "| benign images flagged at alpha 5 % | 6.0 % | <= 7.5 % | yes | 1,000 |" in page
    assert "| patch 7x7 | 10 | 8 | 1 % | 1.0 % | 50.0 % | - | 12.5 % | 25.0 % |" in page
    assert "| PGD-50, 4/255 |" in page
    assert "| 8/255 | all together | 8.0 % | 4.0 % |" in page
    assert "| 8/255 | companion alone, same effort | 2.0 % | 2.0 % |" in page
    assert "| 8/255 | all behind the cascade | 50.0 % | 25.0 % |" in page
    assert "| pgd_4 | 8 | 0.0 % | 100.0 % | 100.0 % |" in page
    assert "wrong one on 0.15 %." in page
    assert "knows everything" not in without


def test_a_p_value_at_its_cutoff_is_flagged_as_in_the_gateway(defence) -> None:
    """Cutoffs are p-values k / (n + 1), so that p often equals one; 0.01 is below itself in float32."""

    class AtCutoff:
        def cutoff(self, alpha: float) -> float:
            return alpha

        def p_values(self, scores: np.ndarray) -> np.ndarray:
            return np.resize([0.01, np.nextafter(0.01, 1.0), 0.05, 0.06], len(scores))

    x = torch.rand(4, 3, SIDE, SIDE)
    right = defence.network(x).argmax(1)
    beaten = judged_by(defence, partial(_passes, AtCutoff()))
    assert beaten(x, (right + 1) % CLASSES).tolist() == [[False, False], [True, False], [True, False], [True, True]]
    assert not beaten(x, right).any()


def test_card_files_say_the_same(tmp_path) -> None:
    content = card([Bound(figure="pgd50_8", kind="at_least", bound=0.5)])
    write_card(tmp_path, content)
    assert json.loads((tmp_path / "card.json").read_text()) == content
    assert (tmp_path / "card.md").read_text() == markdown(content)


@pytest.mark.parametrize(
    "wrong",
    [{"robusts": 3}, {"unaware": 0}, {"bounds": [{"figure": "luck", "kind": "at_least", "bound": 1.0}]},
     {"bounds": [{"figure": "pgd50_8", "kind": "about", "bound": 1.0}]},
     {"bounds": [{"figure": "pgd50_8", "kind": "at_least", "bound": 1.0, "why": "x"}]}],
)  # fmt: skip
def test_unknown_settings_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Evaluation.model_validate(wrong)
