"""Cards in public formats, each validated against the public schema or by the format's own package."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from google.protobuf import json_format
from in_toto_attestation.predicates.test_result.v0.test_result_pb2 import TestResult as Predicate
from in_toto_attestation.v1.statement import Statement
from in_toto_attestation.v1.statement_pb2 import Statement as Message

from gateway.core.loading import hash_files, load_bundle
from training.errors import TrainingError
from training.evaluate.exports import FORMATS, Format, export_card
from training.evaluate.exports.cyclonedx import cyclonedx
from training.evaluate.exports.in_toto import in_toto
from training.evaluate.exports.robustbench import robustbench
from training.evaluate.exports.sarif import sarif
from training.evaluate.exports.source import Source, source_of

ROOT = Path(__file__).resolve().parents[3]
SCHEMAS = ROOT / "tests" / "data" / "schemas"
BUNDLES = sorted(path.parent for path in (ROOT / "models").glob("*/card.json"))
# Of the 236 entries in RobustBench's model_info/ (commit 78fcc9e4): keys that all entries for Linf have, and others.
RANKED = {
    "link": str,
    "name": str,
    "authors": str,
    "additional_data": bool,
    "number_forward_passes": int,
    "dataset": str,
    "venue": str,
    "architecture": str,
    "eps": str,
    "clean_acc": str,
    "reported": str,
    "autoattack_acc": str,
}
OPTIONAL = {"external": str, "footnote": str, "unreliable": bool}


@pytest.fixture(params=BUNDLES, ids=lambda path: path.name)
def source(request: pytest.FixtureRequest) -> Source:
    return source_of(load_bundle(request.param))


def gtsrb() -> Source:
    return source_of(load_bundle(ROOT / "models" / "gtsrb"))


def with_bounds(source: Source, *bounds: tuple[str, str, float], **fields: Any) -> Source:
    """The same with these bounds in place of its own, and other fields in its card."""
    card = json.loads(json.dumps(source.card)) | fields
    card["settings"]["bounds"] = [{"figure": name, "kind": kind, "bound": bound} for name, kind, bound in bounds]
    return Source(source.manifest, card, source.manifest_sha256)


def with_missed(source: Source) -> Source:
    """The same with one bound kept, one missed, one not measured, and a self-check failed."""
    bounds = (("pgd50_4", "at_least", 0.5), ("joint_8", "at_most", 0.01), ("detected_rain_0.05", "at_least", 0.5))
    made = with_bounds(source, *bounds)
    made.card["figures"].pop("detected_rain_0.05", None)
    made.card["checks"][0]["passed"] = False
    return made


def test_cyclonedx_validates(source: Source) -> None:
    text = json.dumps(cyclonedx(source))
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text.replace("performanceMetrics", "luck")) is not None


def test_cyclonedx_has_the_figures_with_intervals_and_the_files() -> None:
    source = gtsrb()
    made = cyclonedx(source)
    model = made["metadata"]["component"]
    assert model["type"] == "machine-learning-model"
    metrics = model["modelCard"]["quantitativeAnalysis"]["performanceMetrics"]
    by_title = {metric["type"]: metric for metric in metrics}
    served = by_title["clean accuracy, as served"]
    assert served["value"] == f"{source.card['figures']['accuracy_served']['value']:.6g}"
    limits = source.card["benign"]["accuracy_served_interval"]
    assert served["confidenceInterval"] == {"lowerBound": f"{limits[0]:.6g}", "upperBound": f"{limits[1]:.6g}"}
    assert "n = 12630" in served["slice"]
    flagged = by_title["benign images flagged at alpha 5 %"]
    assert flagged["confidenceInterval"]["lowerBound"] == f"{source.card['benign']['flagged_0.05_interval'][0]:.6g}"
    assert "AML.T0043.002" in by_title["attacker's success: transfer 8/255 on the answering network"]["slice"]
    considered = model["modelCard"]["considerations"]
    plain = {sentence for part in source.card["plain"] for sentence in part["sentences"]}
    assert set(considered["technicalLimitations"]) <= plain
    assert set(considered["performanceTradeoffs"]) <= plain
    files = {file["name"]: file["hashes"][0]["content"] for file in made["components"]}
    folder = ROOT / "models" / "gtsrb"
    assert {name: sha for name, sha in files.items() if name != "manifest.json"} == hash_files(folder)
    assert made == cyclonedx(gtsrb())


def test_in_toto_validates(source: Source) -> None:
    made = in_toto(source)
    message = json_format.ParseDict({key: value for key, value in made.items() if key != "_type"}, Message())
    message.type = made["_type"]
    Statement.copy_from_pb(message).validate()
    predicate = json_format.ParseDict(made["predicate"], Predicate())
    assert predicate.result in {"PASSED", "WARNED", "FAILED"}
    assert len(predicate.configuration) == 1
    assert {subject.name for subject in message.subject} == set(source.files)
    bounds = [name for tests in made["predicate"].values() if isinstance(tests, list) for name in tests]
    assert sum(str(name).startswith("bound: ") for name in bounds) == len(source.bounds)


def test_in_toto_fails_with_its_tests_and_warns_of_fewer_images() -> None:
    source = gtsrb()
    kept = (("pgd50_4", "at_least", 0.5), ("pgd50_8", "at_least", 0.25), ("control", "at_most", 0.0))
    few = {"reduced": ["companion_pgd_4", "companion_pgd_8"], "status": "incomplete"}
    predicate = in_toto(with_bounds(source, *kept, **few))["predicate"]
    assert predicate["result"] == "WARNED"
    assert predicate["warnedTests"] == ["bound: pgd50_4 >= 0.5", "bound: pgd50_8 >= 0.25"]
    assert predicate["failedTests"] == []
    failed = in_toto(with_missed(source))["predicate"]
    assert failed["result"] == "FAILED"
    assert failed["failedTests"] == [
        "bound: joint_8 <= 0.01",
        "bound: detected_rain_0.05 >= 0.5",
        "self-check: control",
    ]
    whole = {"reduced": [], "status": "complete", "registration": {"sha256": "a" * 64}}
    passed = in_toto(with_bounds(source, *kept, **whole))["predicate"]
    assert passed["result"] == "PASSED"
    assert passed["configuration"] == [{"name": "registration", "digest": {"sha256": "a" * 64}}]


def test_sarif_validates(source: Source) -> None:
    schema = json.loads((SCHEMAS / "sarif-schema-2.1.0.json").read_text("utf-8"))
    for each in (source, with_missed(source)):
        made = sarif(each)
        jsonschema.Draft4Validator(schema, format_checker=jsonschema.FormatChecker()).validate(made)
        assert made["$schema"] == schema["id"]
        (run,) = made["runs"]
        rules = run["tool"]["driver"]["rules"]
        assert all(rules[result["ruleIndex"]]["id"] == result["ruleId"] for result in run["results"])
        prints = [result["partialFingerprints"]["palisade/v1"] for result in run["results"]]
        assert len(set(prints)) == len(prints)
        taxa = {taxonomy["name"]: {taxon["id"] for taxon in taxonomy["taxa"]} for taxonomy in run["taxonomies"]}
        for target in (relation["target"] for rule in rules for relation in rule.get("relationships", [])):
            assert target["id"] in taxa[target["toolComponent"]["name"]]


def test_sarif_has_every_missed_bound_and_every_weakness() -> None:
    source = with_missed(gtsrb())
    results = sarif(source)["runs"][0]["results"]
    levels = {result["ruleId"]: result["level"] for result in results}
    assert levels["bound/joint_8"] == "error"
    assert levels["bound/detected_rain_0.05"] == "warning"
    assert levels["self-check/control"] == "error"
    weak = {f"weakness/{claim.unit}" for claim in source.claims if claim.group != "holds"}
    assert {name for name in levels if name.startswith("weakness/")} == weak
    assert {"weakness/adaptive_8", "weakness/patch_adaptive", "weakness/harm"} <= weak
    assert "weakness/pgd_8" not in weak
    (joint,) = (result for result in results if result["ruleId"] == "weakness/adaptive_8")
    stated = source.card["adaptive"]["eps_8"]
    share, n = f"{100 * stated['alpha_0.01']:.1f}", stated["n"]
    assert re.search(rf"{re.escape(share)} % \(.* to .*\) at alpha 1 %.*n = {n}", joint["message"]["text"])


def problems(entry: dict[str, Any]) -> list[str]:
    """What sets an entry apart from those of RobustBench for Linf."""
    known = RANKED | OPTIONAL
    found = [f"no {key}" for key in RANKED if key not in entry]
    found += [f"unknown {key}" for key in entry if key not in known]
    found += [key for key, value in entry.items() if key in known and type(value) is not known[key]]
    forms = {"eps": r"\d+/255", "clean_acc": r"\d+(\.\d+)?", "autoattack_acc": r"\d+(\.\d+)?"}
    return found + [key for key, form in forms.items() if not re.fullmatch(form, str(entry.get(key)))]


@pytest.mark.parametrize("path", sorted((SCHEMAS / "robustbench").glob("*.json")), ids=lambda path: path.stem)
def test_entries_of_robustbench_itself_have_that_form(path: Path) -> None:
    assert problems(json.loads(path.read_text("utf-8"))) == []


@pytest.mark.parametrize("name", ["gtsrb", "cifar10"])
def test_robustbench_has_the_form_of_its_entries(name: str) -> None:
    source = source_of(load_bundle(ROOT / "models" / name))
    entry = robustbench(source)
    assert problems(entry) == []
    assert problems(entry | {"luck": 1}) == ["unknown luck"]
    figures = source.card["figures"]
    assert float(entry["autoattack_acc"]) == pytest.approx(100 * figures["autoattack_8"]["value"], abs=0.005)
    assert float(entry["clean_acc"]) == pytest.approx(100 * figures["accuracy_companion"]["value"], abs=0.005)
    assert re.match(r"small_resnet, width (32|64), blocks 1-1-1", entry["architecture"])
    assert f"on {figures['autoattack_8']['n']} test images" in entry["footnote"]


def test_robustbench_refuses_a_card_without_autoattack() -> None:
    with pytest.raises(TrainingError, match="robustbench: the card has no figure accuracy_companion"):
        export_card(load_bundle(ROOT / "models" / "imagenet"), "robustbench")


def test_older_cards_are_written_anew_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = load_bundle(ROOT / "models" / "gtsrb")
    for card, words in ((None, "no card to export"), ({"schema_version": 4}, "schema version 4; .* --rewrite")):
        monkeypatch.setattr(type(bundle), "card", lambda _self, card=card: card)
        for name in FORMATS:
            with pytest.raises(TrainingError, match=words):
                export_card(bundle, name)


@pytest.mark.parametrize("name", FORMATS)
def test_the_card_of_another_version_is_not_exported(name: Format) -> None:
    bundle = load_bundle(ROOT / "models" / "gtsrb")
    later = replace(bundle, manifest=bundle.manifest.model_copy(update={"version": "9.0.0"}))
    with pytest.raises(TrainingError, match=rf"it is of gtsrb {bundle.version}, not of gtsrb 9\.0\.0"):
        export_card(later, name)
