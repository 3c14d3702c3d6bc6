"""A card as an in-toto Statement v1 with the predicate test-result v0.1; unsigned."""

from __future__ import annotations

import hashlib
from typing import Any

from training.evaluate.exports.source import Row, Source
from training.evaluate.registration import canonical

STATEMENT = "https://in-toto.io/Statement/v1"
PREDICATE = "https://in-toto.io/attestation/test-result/v0.1"
_SIGNS = {"at_least": ">=", "at_most": "<="}


def in_toto(source: Source) -> dict[str, Any]:
    """The bundle's files are the subjects, the card's bounds and self-checks the tests.

    A bound passes where it is kept, passes with a warning where it is kept on fewer images than the settings ask, and
    fails where it is missed or was not measured. Self-checks that were not made are left out. The result is FAILED if a
    test failed, PASSED if none did on a complete card, else WARNED.
    """
    card = source.card
    tests: dict[str, list[str]] = {"passedTests": [], "warnedTests": [], "failedTests": []}
    for row in source.bounds:
        tests[_outcome(source, row)].append(f"bound: {row['figure']} {_SIGNS[row['kind']]} {row['bound']:g}")
    for row in card["checks"]:
        if row["passed"] is not None:
            tests["passedTests" if row["passed"] else "failedTests"].append(f"self-check: {row['check']}")
    whole = card["status"] == "complete" and not tests["warnedTests"]
    return {
        "_type": STATEMENT,
        "subject": [{"name": name, "digest": {"sha256": sha}} for name, sha in sorted(source.files.items())],
        "predicateType": PREDICATE,
        "predicate": {
            "result": "FAILED" if tests["failedTests"] else "PASSED" if whole else "WARNED",
            "configuration": [_configuration(source)],
            **tests,
        },
    }


def _outcome(source: Source, row: Row) -> str:
    if row["pass"] is not True:
        return "failedTests"
    return "warnedTests" if source.unit_of.get(row["figure"]) in source.card["reduced"] else "passedTests"


def _configuration(source: Source) -> dict[str, Any]:
    """The registration, or else the settings in the card, by the SHA-256 of their canonical JSON."""
    if held := source.card.get("registration"):
        return {"name": "registration", "digest": {"sha256": held["sha256"]}}
    digest = hashlib.sha256(canonical(source.card["settings"])).hexdigest()
    return {"name": "card.json, settings", "digest": {"sha256": digest}}
