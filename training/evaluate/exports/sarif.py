"""A card as static-analysis results: SARIF 2.1.0 (OASIS), which code-scanning tools list."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from typing import Any

from gateway import __version__
from training.evaluate.exports.source import Source
from training.evaluate.harness.shown import percent
from training.evaluate.presentation.claims import Claim
from training.evaluate.references import ATLAS, ATLAS_VERSION, NIST

SCHEMA = "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"
_SIGNS = {"at_least": "at least", "at_most": "at most"}
_TAXONOMIES = {"nist": (NIST, "E2025", "NIST"), "atlas": (ATLAS, ATLAS_VERSION, "The MITRE Corporation")}


def sarif(source: Source) -> dict[str, Any]:
    """One rule for each bound, self-check and attack that the system does not hold against, and its result.

    Errors: bounds that are missed and self-checks that failed. Warnings: known weaknesses, and bounds that were not
    measured. What holds gives no result. Rules refer to NIST AI 100-2 and MITRE ATLAS as taxonomies.
    """
    found = [*_bounds(source), *_checks(source), *_weaknesses(source)]
    units = [unit for _, _, unit in found]
    names = list(dict.fromkeys(rule["id"] for rule, _, _ in found))
    rules = {rule["id"]: rule for rule, _, _ in found}
    return {
        "$schema": SCHEMA,
        "version": "2.1.0",
        "runs": [
            {
                "tool": {
                    "driver": {
                        "name": "Palisade",
                        "version": __version__,
                        "rules": [rules[name] for name in names],
                        "supportedTaxonomies": [
                            {"name": name, "index": place} for place, (name, *_) in enumerate(_TAXONOMIES.values())
                        ],
                    }
                },
                "taxonomies": _taxonomies(source, units),
                "artifacts": [
                    {"location": {"uri": name}, "hashes": {"sha-256": sha}}
                    for name, sha in sorted(source.files.items())
                ],
                "results": [result | {"ruleIndex": names.index(result["ruleId"])} for _, result, _ in found],
                "columnKind": "unicodeCodePoints",
            }
        ],
    }


Found = tuple[dict[str, Any], dict[str, Any], str | None]


def _bounds(source: Source) -> Iterator[Found]:
    for row in source.bounds:
        if row["pass"] is True:
            continue
        unit = source.unit_of.get(row["figure"])
        bound = f"{_SIGNS[row['kind']]} {percent(row['bound'])}"
        value = "was not measured" if row["pass"] is None else f"is {percent(row['value'])}, n = {row['n']:,}"
        yield (
            _rule(source, f"bound/{row['figure']}", f"{row['title']}: {bound}", unit),
            _result(
                f"bound/{row['figure']}",
                "warning" if row["pass"] is None else "error",
                f"{row['title']} {value}; it should be {bound}.",
                f"figures.{row['figure']}",
            ),
            unit,
        )


def _checks(source: Source) -> Iterator[Found]:
    for row in source.card["checks"]:
        if row["passed"] is False:
            name = f"self-check/{row['check']}"
            text = f"Self-check failed, figures overstate the defence: {row['title']}: {row['seen']}."
            yield _rule(source, name, row["title"], None), _result(name, "error", text, "checks"), None


def _weaknesses(source: Source) -> Iterator[Found]:
    titles = source.card["titles"].get("units", {})
    for claim in source.claims:
        if claim.group == "holds":
            continue
        name = f"weakness/{claim.unit}"
        rule = _rule(source, name, f"Not shown to be held against: {titles.get(claim.unit, claim.unit)}", claim.unit)
        text = claim.text if claim.group != "undecided" else f"Undecided, too few images: {claim.text}"
        yield rule, _result(name, "warning", text, f"claims.{claim.unit}.{_key(claim)}"), claim.unit


def _key(claim: Claim) -> str:
    """A short name of a claim among those of its unit, which does not depend on their order."""
    return hashlib.sha256(re.sub(r"[\d.,]+", "", claim.text).encode()).hexdigest()[:8]


def _rule(source: Source, name: str, title: str, unit: str | None) -> dict[str, Any]:
    references = source.references(unit)
    relationships = [
        {"target": {"id": _id(each), "toolComponent": {"name": _TAXONOMIES[key][0]}}, "kinds": ["relevant"]}
        for key, names in references.items()
        for each in names
    ]
    rule: dict[str, Any] = {"id": name, "shortDescription": {"text": title}}
    return rule | ({"relationships": relationships} if relationships else {})


def _result(name: str, level: str, text: str, where: str) -> dict[str, Any]:
    return {
        "ruleId": name,
        "kind": "fail",
        "level": level,
        "message": {"text": text},
        "locations": [
            {
                "physicalLocation": {"artifactLocation": {"uri": "card.json"}},
                "logicalLocations": [{"fullyQualifiedName": where}],
            }
        ],
        "partialFingerprints": {"palisade/v1": f"{name} {where}"},
    }


def _taxonomies(source: Source, units: list[str | None]) -> list[dict[str, Any]]:
    named = [source.references(unit) for unit in units]
    rows = []
    for key, (name, version, organization) in _TAXONOMIES.items():
        taxa = sorted({each for references in named for each in references[key]})
        rows.append(
            {
                "name": name,
                "version": version,
                "organization": organization,
                "shortDescription": {"text": name},
                "taxa": [{"id": _id(each), "name": each.partition(" ")[2]} for each in taxa],
            }
        )
    return rows


def _id(reference: str) -> str:
    return reference.partition(" ")[0]
