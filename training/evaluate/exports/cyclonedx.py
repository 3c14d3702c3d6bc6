"""A card as a machine-learning bill of materials: CycloneDX 1.6, JSON (ECMA-424)."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from typing import Any

from gateway import __version__
from training.evaluate.exports.source import Source
from training.evaluate.harness.shown import percent

SPECIFICATION = "1.6"


def cyclonedx(source: Source) -> dict[str, Any]:
    """The bundle as a component `machine-learning-model` with its model card, and its files with their SHA-256.

    The serial number follows from the manifest's digest, so that the same bundle gives the same document.
    """
    manifest, card = source.manifest, source.card
    model = f"{manifest.name}@{manifest.version}"
    files = [
        {"type": "file", "bom-ref": f"{model}/{name}", "name": name, "hashes": [{"alg": "SHA-256", "content": sha}]}
        for name, sha in sorted(source.files.items())
    ]
    return {
        "$schema": f"http://cyclonedx.org/schema/bom-{SPECIFICATION}.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": SPECIFICATION,
        "serialNumber": f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_OID, source.manifest_sha256)}",
        "version": 1,
        "metadata": {
            "timestamp": f"{card['date']}T00:00:00Z",
            "tools": {"components": [{"type": "application", "name": "palisade-gateway", "version": __version__}]},
            "component": {
                "type": "machine-learning-model",
                "bom-ref": model,
                "name": manifest.name,
                "version": manifest.version,
                "description": manifest.description,
                "modelCard": _model_card(source),
                "properties": _properties(source),
            },
        },
        "components": files,
        "dependencies": [{"ref": model, "dependsOn": [file["bom-ref"] for file in files]}],
    }


def _model_card(source: Source) -> dict[str, Any]:
    manifest = source.manifest
    size = manifest.input
    return {
        "modelParameters": {
            "approach": {"type": "supervised"},
            "task": "image classification",
            "datasets": [{"type": "dataset", "name": str(manifest.data.get("name", "")), "contents": _data(source)}],
            "inputs": [{"format": f"image, {size.height}x{size.width}, {size.channels} channel(s)"}],
            "outputs": [{"format": f"one of {len(manifest.classes)} labels, p-value, flag"}],
        },
        "quantitativeAnalysis": {"performanceMetrics": [*_figures(source), *_claims(source)]},
        "considerations": {"technicalLimitations": source.limitations, "performanceTradeoffs": source.price},
    }


def _data(source: Source) -> dict[str, Any]:
    splits = {name: row for name, row in source.manifest.data.items() if isinstance(row, dict) and "sha256" in row}
    rows = [
        {"name": f"palisade:data:{name}:{key}", "value": str(row[key])}
        for name, row in splits.items()
        for key in ("n", "groups", "sha256")
        if key in row
    ]
    return {"properties": rows}


def _figures(source: Source) -> Iterator[dict[str, Any]]:
    titles = source.card["titles"]["figures"]
    for name, row in source.card["figures"].items():
        parts = [f"n = {row['n']}", f"seed {row['seed']}"]
        yield _metric(
            titles.get(name, name), row["value"], source.interval(name), parts, source.unit_of.get(name), source
        )


def _claims(source: Source) -> Iterator[dict[str, Any]]:
    titles = source.card["titles"].get("units", {})
    for claim in source.claims:
        for share in claim.shares:
            parts = [f"n = {claim.n}", *([] if share.alpha is None else [f"alpha {percent(share.alpha, 0)}"])]
            title = f"attacker's success: {titles.get(claim.unit, claim.unit)}"
            yield _metric(title, share.value, share.interval, parts, claim.unit, source)


def _metric(
    title: str, value: float, limits: tuple[float, float] | None, parts: list[str], unit: str | None, source: Source
) -> dict[str, Any]:
    named = [name for names in source.references(unit).values() for name in names]
    metric: dict[str, Any] = {"type": title, "value": f"{value:.6g}", "slice": "; ".join([*parts, *named])}
    if limits is not None:
        metric["confidenceInterval"] = {"lowerBound": f"{limits[0]:.6g}", "upperBound": f"{limits[1]:.6g}"}
    return metric


def _properties(source: Source) -> list[dict[str, str]]:
    card = source.card
    rows = [("palisade:card:status", card["status"]), ("palisade:card:sha256", source.files["card.json"])]
    if held := card.get("registration"):
        rows.append(("palisade:registration:sha256", held["sha256"]))
    rows += [(f"palisade:forwards:{part}", f"{count:g}") for part, count in card.get("forwards", {}).items()]
    rows += [(f"palisade:taxonomy:{key}", name) for key, name in card["titles"]["taxonomies"].items()]
    return [{"name": name, "value": value} for name, value in rows]
