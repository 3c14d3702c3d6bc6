"""Registrations: hashed before measuring, and held against the card."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from gateway.core.loading import load_bundle
from gateway.core.manifest import Manifest
from training.errors import TrainingError
from training.evaluate.card import extended, titled
from training.evaluate.registration import (
    Registration,
    canonical,
    card_problems,
    code_version,
    differences,
    measured_before,
    parsed,
    read_registration,
    register,
)
from training.evaluate.verify import stated_problems
from training.recipes.evaluation import Bound, Evaluation

ROOT = Path(__file__).resolve().parents[3]
DATA = {split: {"n": 4, "groups": 2, "sha256": split} for split in ("train", "select", "calibrate", "test")}
ASKED = Evaluation(seed=3, adaptive=50, bounds=[Bound(figure="joint_8", kind="at_most", bound=0.5)])


def made(**change: Any) -> Registration:
    return register("toy", "1.0.0", ASKED, DATA).model_copy(update=change)


def sealed(found: Registration) -> Registration:
    return found.model_copy(update={"sha256": found.digest})


def differ(evaluation: Evaluation = ASKED, *, version: str = "1.0.0", data: dict[str, Any] = DATA) -> list[str]:
    return differences(made(), bundle="toy", version=version, evaluation=evaluation, data=data)


def test_the_digest_is_that_of_the_content_however_it_is_written(tmp_path: Path) -> None:
    found = made()
    assert len(found.sha256) == 64
    content = found.to_json()
    turned = dict(reversed(content.items()))
    (tmp_path / "r.json").write_text(json.dumps(turned, indent=7))
    assert read_registration(tmp_path / "r.json") == found
    assert found.code == code_version()
    assert found.code["palisade"]


def test_a_registration_of_an_earlier_release_holds_when_settings_are_added() -> None:
    content = made().to_json()
    del content["sha256"], content["evaluation"]["certified"], content["evaluation"]["queries"]
    content["sha256"] = hashlib.sha256(canonical(content)).hexdigest()
    assert parsed(content).to_json() == content
    assert parsed(parsed(content).to_json()).evaluation == ASKED


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("evaluation", "seed"), 4),
        (("evaluation", "bounds", 0, "bound"), 0.6),
        (("evaluation", "adaptive"), 20),
        (("data", "test", "sha256"), "x"),
        (("time",), "2020-01-01T00:00:00Z"),
        (("code", "palisade"), "9"),
    ],
)
def test_an_altered_registration_is_refused(path: tuple[Any, ...], value: object) -> None:
    content = made().to_json()
    place: Any = content
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    with pytest.raises(TrainingError, match="registration: the digest is not that of its content"):
        parsed(content)


def test_what_is_no_registration_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="registration: bundle: Field required"):
        parsed({"version": "1.0.0"})
    (tmp_path / "r.json").write_text("{")
    with pytest.raises(TrainingError, match=r"registration: .*r\.json is not JSON"):
        read_registration(tmp_path / "r.json")


def test_what_is_measured_has_to_be_what_was_registered() -> None:
    assert differ() == []
    lower = [Bound(figure="joint_8", kind="at_most", bound=0.6)]
    assert differ(ASKED.model_copy(update={"bounds": lower})) == [
        "registration: bounds are not the registered ones: joint_8"
    ]
    assert differ(ASKED.model_copy(update={"bounds": []})) == [
        "registration: bounds are not the registered ones: joint_8"
    ]
    assert differ(ASKED.model_copy(update={"seed": 4})) == ["registration: the seed is 4, registered is 3"]
    assert differ(ASKED.model_copy(update={"adaptive": 20})) == [
        "registration: settings are not the registered ones: adaptive 20 in place of 50"
    ]
    more = [*ASKED.bounds, Bound(figure="small_field_proved", kind="at_least", bound=0.6)]
    assert differ(ASKED.model_copy(update={"bounds": more})) == [], "a figure that nothing was registered for"
    second = [*ASKED.bounds, Bound(figure="joint_8", kind="at_most", bound=0.9)]
    assert differ(ASKED.model_copy(update={"bounds": second})) == [
        "registration: bounds are not the registered ones: joint_8"
    ]
    assert differ(version="1.0.1") == ["registration: it is of toy 1.0.0, not of toy 1.0.1"]
    assert differ(data=DATA | {"test": {"n": 4, "groups": 2, "sha256": "other"}}) == [
        "registration: data are not the registered ones: test"
    ]


def test_none_of_several_bounds_on_a_figure_may_be_left_out() -> None:
    tight, loose = (Bound(figure="joint_8", kind="at_most", bound=bound) for bound in (0.1, 0.5))
    both, one = ASKED.model_copy(update={"bounds": [tight, loose]}), ASKED.model_copy(update={"bounds": [loose]})
    found = register("toy", "1.0.0", both, DATA)
    given: dict[str, Any] = {"bundle": "toy", "version": "1.0.0", "data": DATA}
    assert differences(found, evaluation=both, **given) == []
    assert differences(found, evaluation=one, **given) == ["registration: bounds are not the registered ones: joint_8"]


@pytest.mark.parametrize("bound", [math.nan, math.inf])
def test_a_bound_is_a_number(bound: float) -> None:
    with pytest.raises(ValidationError, match="finite"):
        Bound(figure="joint_8", kind="at_most", bound=bound)


def test_what_was_measured_before_is_named() -> None:
    found = made(time=datetime(2026, 1, 2, 12, tzinfo=UTC))
    rows = [
        {"unit": "a", "date": "2026-01-01"},
        {"unit": "b", "date": "2026-01-02"},
        {"unit": "c", "date": "2026-01-02", "time": "2026-01-02T11:59:59+00:00"},
        {"unit": "d", "date": "2026-01-02", "time": "2026-01-02T12:00:00+00:00"},
    ]
    assert measured_before(found, rows) == ["registration: measured before it was registered: a, c"]
    assert measured_before(found, rows[3:]) == []


def shipped() -> tuple[dict[str, Any], Manifest, Registration]:
    """The shipped card as if it had been registered a day before it was measured."""
    bundle = load_bundle(ROOT / "models" / "gtsrb")
    card = bundle.card()
    assert card is not None
    evaluation = Evaluation.model_validate(card["settings"])
    first = min(datetime.fromisoformat(row["date"]).replace(tzinfo=UTC) for row in card["units"])
    found = register(bundle.name, bundle.version, evaluation, bundle.manifest.data)
    found = sealed(found.model_copy(update={"time": first - timedelta(days=1)}))
    return titled(card | {"registration": found.to_json()}), bundle.manifest, found


def test_the_shipped_card_is_the_registered_one() -> None:
    bundle = load_bundle(ROOT / "models" / "gtsrb")
    card = bundle.card()
    assert card is not None
    assert card["registration"]["version"] == bundle.version
    assert stated_problems(bundle, card, Evaluation.model_validate(card["settings"]).bounds) == []


def test_a_card_is_held_to_the_registration_that_it_carries() -> None:
    card, manifest, found = shipped()
    assert card_problems(card, manifest) == card_problems(card, manifest, found) == []
    looser = json.loads(json.dumps(card["settings"]))
    looser["bounds"][0]["bound"] = 0.5
    assert card_problems(card | {"settings": looser}, manifest) == [
        "registration: bounds are not the registered ones: accuracy_answering"
    ]
    others = manifest.model_copy(update={"data": manifest.data | {"test": {}}})
    assert card_problems(card, others) == ["registration: data are not the registered ones: test"]
    training = manifest.training | {"evaluation": looser}
    assert card_problems(card, manifest.model_copy(update={"training": training})) == [
        "registration: bounds are not the registered ones: accuracy_answering"
    ]
    late = sealed(found.model_copy(update={"time": datetime.now(UTC)}))
    (problem,) = card_problems(card | {"registration": late.to_json()}, manifest)
    assert problem.startswith("registration: measured before it was registered: benign, cascade")


def test_a_reader_with_the_registration_finds_another_one_or_none() -> None:
    card, manifest, found = shipped()
    other = sealed(found.model_copy(update={"code": {"palisade": "0"}}))
    assert card_problems(card, manifest, other) == [
        f"registration: the card carries {found.sha256}, not {other.sha256}"
    ]
    bare = {key: value for key, value in card.items() if key != "registration"}
    assert card_problems(bare, manifest) == []
    assert card_problems(bare, manifest, found) == ["registration: the card carries none"]


def test_verify_fails_such_a_card() -> None:
    card, _, found = shipped()
    bundle = load_bundle(ROOT / "models" / "gtsrb")
    bounds = found.evaluation.bounds
    altered = card | {"registration": found.to_json() | {"version": "2.0.0"}}
    rows = [row for row in stated_problems(bundle, altered, bounds) if row["title"] == "registration"]
    assert [(row["why"], row["pass"]) for row in rows] == [
        ("registration: the digest is not that of its content", False)
    ]


def test_the_card_of_another_version_is_found() -> None:
    bundle = load_bundle(ROOT / "models" / "gtsrb")
    card, version = bundle.card(), bundle.manifest.version
    assert card is not None
    later = bundle.manifest.model_copy(update={"version": "9.0.0"})
    problem = f"registration: it is of gtsrb {version}, not of gtsrb 9.0.0"
    assert card_problems(card, later) == [problem]
    rows = stated_problems(replace(bundle, manifest=later), card, Evaluation.model_validate(card["settings"]).bounds)
    assert [row["why"] for row in rows] == [f"it is of gtsrb {version}, not of gtsrb 9.0.0", problem]


def test_cards_under_two_registrations_are_not_put_together() -> None:
    card, _, found = shipped()
    other = sealed(found.model_copy(update={"code": {"palisade": "0"}}))
    with pytest.raises(TrainingError, match="registration: the card carries another one"):
        extended(card, card | {"registration": other.to_json()})
