from __future__ import annotations

import copy
import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gateway.core.loading import Bundle, load_bundle, write_manifest
from training.errors import TrainingError
from training.evaluate.card import assemble, check, page_of, titled, write_card
from training.evaluate.harness.bench import Bench
from training.evaluate.harness.found import pack
from training.evaluate.run import run_units
from training.evaluate.verify import contradictions, page_problems, verify
from training.recipes.evaluation import Bound, Evaluation
from training.util.atomic import draft_of

MEASURED = ["benign", "companion_pgd_8", "adaptive_8"]


def told(outcomes: dict[str, np.ndarray], figures: dict[str, dict[str, Any]]) -> dict[str, Any]:
    return {
        "bundle": "toy",
        "version": "1.0.0",
        "status": "complete",
        "date": "2026-01-02",
        "command": "x",
        "device": "x",
        "settings": Evaluation().model_dump(mode="json"),
        "figures": figures,
        "companion_pgd": {
            "eps_8": {"n": 4, "eps": 8, "steps": 5, "restarts": 1, "accuracy": 0.75, "accuracy_interval": None}
        },
        "outcomes": [{"name": name, **pack(bits)} for name, bits in outcomes.items()],
    }


PGD = {
    "value": 0.75,
    "n": 4,
    "seed": 0,
    "outcome": "pgd50_8",
    "among": None,
    "minus": None,
    "at": ["companion_pgd", "eps_8", "accuracy"],
}
OUTCOMES = {"pgd50_8": np.array([True, True, False, True])}


def wrong(card: dict[str, Any], tmp_path: Path, page: str | None = None) -> list[str]:
    bounds = [Bound(figure="pgd50_8", kind="at_least", bound=0.5)]
    (tmp_path / "card.md").write_text(page or page_of(card, check(card["figures"], bounds)))
    rows = [*contradictions(card, OUTCOMES), *page_problems(card, bounds, tmp_path / "card.md")]
    return [row["why"] for row in rows]


def test_a_true_card_does_not_contradict_itself(tmp_path: Path) -> None:
    assert wrong(told(OUTCOMES, {"pgd50_8": PGD}), tmp_path) == []


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"value": 0.76}, "figures is not the share"),
        ({"n": 5}, "n is not that"),
        ({"outcome": "luck"}, "lacks the outcomes luck"),
        ({"at": ["companion_pgd", "eps_8", "n"]}, "is not the share"),
    ],
)
def test_an_altered_figure_is_found(change: dict[str, Any], why: str, tmp_path: Path) -> None:
    found = wrong(told(OUTCOMES, {"pgd50_8": PGD | change}), tmp_path)
    assert len(found) == 1
    assert why in found[0]


def test_an_altered_table_or_page_is_found(tmp_path: Path) -> None:
    card = told(OUTCOMES, {"pgd50_8": PGD})
    page = page_of(card, check(card["figures"], [Bound(figure="pgd50_8", kind="at_least", bound=0.5)]))
    altered = wrong(card, tmp_path, page.replace("75.0 %", "85.0 %"))
    assert altered[0] == "row 1 of the headline table is not that of the card"
    assert any("85.0%" in why for why in altered[1:])
    card["companion_pgd"]["eps_8"]["accuracy"] = 0.8
    assert wrong(card, tmp_path) == ["companion_pgd.eps_8.accuracy is not the share of the card's outcomes"]


def installed(bundle: Bundle, card: dict[str, Any], out: Path) -> Bundle:
    """The bundle with that card, hashes and all."""
    import shutil

    with draft_of(out) as draft:
        shutil.copytree(bundle.path, draft, dirs_exist_ok=True)
        write_card(draft, card)
        write_manifest(draft, bundle.manifest)
    return load_bundle(out)


@pytest.fixture(scope="module")
def card(shared: Bench) -> dict[str, Any]:
    run_units(shared, MEASURED)
    return json.loads(json.dumps(assemble(shared)))


def test_measured_again_it_agrees(bundle: Bundle, card: dict[str, Any], tmp_path: Path) -> None:
    rows = verify(installed(bundle, card, tmp_path / "out"), lambda *_: None)
    assert [row["figure"] for row in rows] == ["accuracy_answering", "pgd50_8", "joint_excess_8"]
    assert all(row["pass"] for row in rows), rows


def test_without_bounds_the_figures_of_a_build_are_measured_again(
    bundle: Bundle, card: dict[str, Any], tmp_path: Path
) -> None:
    evaluation = card["settings"] | {"bounds": []}
    manifest = bundle.manifest.model_copy(update={"training": bundle.manifest.training | {"evaluation": evaluation}})
    served = {"accuracy_served": card["figures"]["accuracy_served"]}
    unbound = titled(card | {"settings": evaluation, "figures": served})
    rows = verify(installed(dataclasses.replace(bundle, manifest=manifest), unbound, tmp_path / "out"), lambda *_: None)
    assert [(row["figure"], row["pass"]) for row in rows] == [("accuracy_served", True)]
    assert rows[0]["value"] == unbound["figures"]["accuracy_served"]["value"]


def test_altered_outcomes_with_their_number_are_found(bundle: Bundle, card: dict[str, Any], tmp_path: Path) -> None:
    """A forger who alters the outcomes too is found by measuring again; by the hashes, if he leaves those."""
    forged = copy.deepcopy(card)
    n = forged["figures"]["accuracy_answering"]["n"]
    right = np.arange(n) % 2 == 0
    forged["outcomes"] = [
        {"name": row["name"], **pack(right)} if row["name"] == "accuracy_answering" else row for row in card["outcomes"]
    ]
    forged["figures"]["accuracy_answering"]["value"] = forged["benign"]["accuracy_answering"] = 0.5
    whole = installed(bundle, titled(forged), tmp_path / "out")
    rows = verify(whole, lambda *_: None, count=4)
    failing = {row["figure"]: row["why"] for row in rows if not row["pass"]}
    assert list(failing) == ["accuracy_answering"]
    assert "outcomes differ from the card's" in failing["accuracy_answering"]


def test_a_bundle_without_a_card_cannot_be_verified(bundle: Bundle) -> None:
    with pytest.raises(TrainingError, match="no card"):
        verify(bundle, lambda *_: None)
