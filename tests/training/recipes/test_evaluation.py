from __future__ import annotations

import json
from pathlib import Path

import pytest
from pydantic import ValidationError

from training.recipes.evaluation import COUNTS, Bound, Evaluation

ROOT = Path(__file__).resolve().parents[3]


@pytest.mark.parametrize(
    "wrong",
    [
        {"robusts": 3},
        {"unaware": 0},
        {"bounds": [{"figure": "luck", "kind": "at_least", "bound": 1.0}]},
        {"bounds": [{"figure": "pgd50_8", "kind": "about", "bound": 1.0}]},
        {"bounds": [{"figure": "pgd50_8", "kind": "at_least", "bound": 1.0, "why": "x"}]},
    ],
)
def test_unknown_settings_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        Evaluation.model_validate(wrong)


def test_an_unknown_figure_is_named() -> None:
    with pytest.raises(ValidationError, match="unknown figure 'luck'"):
        Bound(figure="luck", kind="at_least", bound=1.0)


def test_a_cap_holds_for_every_count_and_for_all_of_them() -> None:
    few = Evaluation(square=3, adaptive=0).capped(8)
    assert {getattr(few, name) for name in COUNTS} == {8, 3, 0}
    assert few.steps == Evaluation().steps
    assert Evaluation().capped(None) == Evaluation()


def test_settings_of_shipped_bundles_are_read() -> None:
    for path in (ROOT / "models").glob("*/manifest.json"):
        Evaluation.model_validate(json.loads(path.read_text())["training"]["evaluation"])
