"""The robustness card: what the finished units found, put together; it names the units that are missing."""

from __future__ import annotations

import copy
import json
import platform
import tempfile
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch

from gateway.atomic import write_text
from gateway.core.loading import Bundle
from gateway.core.manifest import Manifest
from training.data.dataset import Dataset
from training.errors import TrainingError
from training.evaluate.checks import CHECKS, self_checks
from training.evaluate.forwards import forwards_of
from training.evaluate.harness.bench import Bench
from training.evaluate.harness.found import Figure, counted, unpack, value_of
from training.evaluate.harness.store import Store
from training.evaluate.harness.unit import places_of
from training.evaluate.presentation.page import markdown
from training.evaluate.presentation.plain import plain
from training.evaluate.presentation.report import Drawn, html
from training.evaluate.registration import Registration, code_version
from training.evaluate.run import finished, run_units
from training.evaluate.titles import titles_of
from training.evaluate.units import BASIC, UNITS, figures, known_figures
from training.recipes.evaluation import Bound, Evaluation
from training.util.signatures import StepProgress

SCHEMA, READABLE = 5, (3, 4, 5)  # 4 has titles, 5 a page in plain words, forward passes and references
_TAKEN = ("schema_version", "detector", "forwards", "registration", "samples")  # of what extends a card
CARD, PAGE, REPORT = "card.json", "card.md", "report.html"


def evaluate(
    bundle: Bundle,
    data: Dataset,
    settings: Evaluation,
    progress: StepProgress,
    *,
    units: Sequence[str] = BASIC,
    folder: Path | None = None,
    registration: Registration | None = None,
) -> dict[str, Any]:
    """Measure `units` and return the card as plain JSON content; `TrainingError` if one of them cannot run.

    Work is kept in `folder`, or thrown away without one. `TrainingError` as well for bounds on unknown figures.
    `registration` is what the card is held to.
    """
    known_figures(settings.bounds)
    with tempfile.TemporaryDirectory() as temporary:
        bench = Bench(bundle, data, settings, Store(folder or Path(temporary)), progress)
        bench.registration = None if registration is None else registration.to_json()
        if failed := run_units(bench, units):
            raise TrainingError("; ".join(f"{name}: {why}" for name, why in failed.items()))
        return assemble(bench)


def assemble(bench: Bench) -> dict[str, Any]:
    """The card of all units that were finished on this bundle, data and settings.

    `status` is `failed` where a self-check found the harness or the model's gradients wanting, `incomplete` where units
    are missing or used fewer images than the settings ask, else `complete`.
    """
    bundle, settings = bench.bundle, bench.asked or bench.settings
    results = {name: found for name in UNITS if (found := finished(bench, name)) is not None}
    asked = {name: unit.images(settings, bundle, bench.data) for name, unit in UNITS.items()}
    wanted = [name for name, n in asked.items() if n > 0]
    outcomes = {key: unpack(recorded) for found in results.values() for key, recorded in found["outcomes"].items()}
    made_of = {key: Figure(**recorded) for found in results.values() for key, recorded in found["figures"].items()}
    card: dict[str, Any] = {
        "schema_version": SCHEMA,
        "bundle": bundle.name,
        "version": bundle.version,
        "companion": bundle.manifest.companion,
        **stated_by(bundle),
        "status": "",
        "missing": [name for name in wanted if name not in results],
        "reduced": [name for name in wanted if name in results and results[name]["n"] < asked[name]],
        "date": max((found["date"] for found in results.values()), default=datetime.now(UTC).date().isoformat()),
        "command": f"palisade evaluate models/{bundle.name}",
        "device": f"{platform.machine()} CPU, {torch.get_num_threads()} thread(s)"
        if bench.device == "cpu"
        else torch.cuda.get_device_name(),
        "software": {"torch": torch.__version__, "onnxruntime": onnxruntime.__version__, **code_version()},
        **({} if bench.registration is None else {"registration": bench.registration}),
        "settings": settings.model_dump(mode="json"),
        "checks": self_checks(results, outcomes, settings),
        "units": [
            {"unit": name, **{key: found[key] for key in ("n", "date", "time", "seconds") if key in found}}
            for name, found in results.items()
        ],
        "figures": figure_rows(made_of, outcomes, settings.seed),
    }
    for name, found in results.items():
        _place(card, UNITS[name].path, found["section"])
    card["samples"] = _samples(bundle)
    card["outcomes"] = [
        {"name": key, **recorded} for found in results.values() for key, recorded in found["outcomes"].items()
    ]
    card["status"] = _status(card)
    return titled(card)


def extended(card: Mapping[str, Any], fresh: Mapping[str, Any]) -> dict[str, Any]:
    """`card` with what `fresh` measured in the place of, or beside, what it has; everything else as it stands.

    Both are cards of one bundle under the same settings, and under one registration if they have any; `TrainingError`
    if they are not. Self-checks that `fresh` could not make stay those of `card`.
    """
    for key in ("bundle", "version"):
        if card[key] != fresh[key]:
            raise TrainingError(f"{key}: the card has {card[key]!r}, what was measured now {fresh[key]!r}")
    _same_settings(card, fresh)
    registered = [made["registration"] for made in (card, fresh) if "registration" in made]
    if len(registered) > 1 and registered[0] != registered[1]:
        raise TrainingError("registration: the card carries another one than what was measured now")
    now = {row["unit"] for row in fresh["units"]}
    units = [*(row for row in card["units"] if row["unit"] not in now), *fresh["units"]]
    new = copy.deepcopy(dict(card)) | {key: fresh[key] for key in _TAKEN if key in fresh}
    _place(new, (), _sections(fresh))
    order = list(UNITS)
    new["units"] = sorted(units, key=lambda row: order.index(row["unit"]) if row["unit"] in order else len(order))
    have = {row["unit"] for row in units}
    new["missing"] = [name for name in fresh["missing"] if name not in have]
    new["reduced"] = [name for name in card["reduced"] if name not in now] + list(fresh["reduced"])
    new["date"] = max(card["date"], fresh["date"])
    new["settings"] = fresh["settings"]
    made = {row["check"]: row for row in fresh["checks"] if row["passed"] is not None}
    new["checks"] = [made.get(row["check"], row) for row in card["checks"]]
    new["figures"] = card["figures"] | fresh["figures"]
    outcomes = {row["name"]: row for row in [*card["outcomes"], *fresh["outcomes"]]}
    new["outcomes"] = list(outcomes.values())
    new["status"] = _status(new)
    return titled(new)


def without_units(card: Mapping[str, Any], names: Collection[str]) -> dict[str, Any]:
    """`card` without what the units `names` measured, as of a rule that the bundle has no more."""
    gone = {row["unit"] for row in card["units"]} & set(names)
    if not gone:
        return dict(card)
    figures = {figure for name in gone for figure in UNITS[name].figures}
    new = copy.deepcopy(dict(card))
    places = {place.key for name in gone for place in UNITS[name].places}
    for key in places:
        new.pop(key, None)
    for named in new.get("titles", {}).values():
        for key in {*gone, *figures, *places} & set(named):
            del named[key]
    new["units"] = [row for row in new["units"] if row["unit"] not in gone]
    outcomes = {row["outcome"] for name, row in card["figures"].items() if name in figures}
    new["figures"] = {name: row for name, row in new["figures"].items() if name not in figures}
    new["outcomes"] = [row for row in new["outcomes"] if row["name"] not in outcomes]
    return new


def _same_settings(card: Mapping[str, Any], fresh: Mapping[str, Any]) -> None:
    """`TrainingError` that names the first setting that differs; one that a later release has may be its default.

    There may be more bounds now, on figures that the card does not have, and other numbers of images of units that it
    does not have or that are measured anew.
    """
    defaults = Evaluation().model_dump(mode="json")
    kept = {row["unit"] for row in card["units"]} - {row["unit"] for row in fresh["units"]}
    counts = {unit.count for unit in UNITS.values()} - {UNITS[name].count for name in kept if name in UNITS}
    for key in [key for key in {**card["settings"], **fresh["settings"]} if key not in counts]:
        before, now = (each["settings"].get(key, defaults.get(key)) for each in (card, fresh))
        if key == "bounds":
            now = [bound for bound in now if bound in before or bound["figure"] in card["figures"]]
        if before != now:
            raise TrainingError(f"settings: {key}: the card has {before!r}, what was measured now {now!r}")


def _status(card: Mapping[str, Any]) -> str:
    if any(row["passed"] is False for row in card["checks"]):
        return "failed"
    return "incomplete" if card["missing"] or card["reduced"] else "complete"


def _sections(card: Mapping[str, Any]) -> dict[str, Any]:
    """What units found, without the rows about the card itself."""
    places = {place.key for place in places_of(UNITS.values())} | {unit.path[0] for unit in UNITS.values() if unit.path}
    return {key: value for key, value in card.items() if key in places}


def titled(card: Mapping[str, Any]) -> dict[str, Any]:
    """The card with titles of everything on it and its page in plain words; no number is touched."""
    # Both come last, whenever they were added.
    new = {key: value for key, value in card.items() if key not in ("titles", "plain")}
    new |= {"schema_version": SCHEMA, "titles": titles_of(card)}
    named = ((row, CHECKS.get(row["check"])) for row in card["checks"])
    new["checks"] = [row | {"title": known[0]} if known else row for row, known in named]
    bounds = check(new["figures"], Evaluation.model_validate(new["settings"]).bounds)
    new["plain"] = [asdict(part) for part in plain(new, bounds)]
    return new


def stated_by(bundle: Bundle) -> dict[str, Any]:
    """What a card states of its bundle without measuring: what the defence looks at, and its forward passes."""
    forwards = forwards_of(bundle)
    return {"detector": detector_rows(bundle.manifest)} | ({"forwards": forwards} if forwards else {})


def of_another(card: Mapping[str, Any], manifest: Manifest) -> str | None:
    """Which bundle or version a card is of, if it is not that of the manifest."""
    mine, stated = f"{manifest.name} {manifest.version}", f"{card['bundle']} {card['version']}"
    return None if stated == mine else f"it is of {stated}, not of {mine}"


def detector_rows(manifest: Manifest) -> list[dict[str, Any]]:
    """What the defence looks at, {kind, name, title, meaning, fused, guards} each: its scores, and its localiser."""
    fused = {name for calibration in manifest.calibrations for name in calibration.fused}
    guards = {calibration.guard.score for calibration in manifest.calibrations if calibration.guard is not None}

    def row(kind: str, name: str) -> dict[str, Any]:
        recorded = {"title": manifest.titles.get(name, name), "meaning": manifest.meanings.get(name, "")}
        return {"kind": kind, "name": name, **recorded, "fused": name in fused, "guards": name in guards}

    return [*(row("score", name) for name in manifest.scores), row("localiser", manifest.localiser)]


def figure_rows(
    made_of: Mapping[str, Figure], outcomes: Mapping[str, np.ndarray], seed: int
) -> dict[str, dict[str, Any]]:
    """{figure: {value, n, seed, and how it is made of the outcomes}}; figures that no image counts for are left out."""
    rows, known = {}, figures()
    for name, figure in made_of.items():
        value = value_of(figure, outcomes)
        if name in known and value is not None:
            rows[name] = {"value": value, "n": counted(figure, outcomes), "seed": seed, **asdict(figure)}
    return rows


def drawn(bench: Bench) -> Drawn:
    """What only the report shows of the finished units."""
    results = {name: found for name in UNITS if (found := finished(bench, name)) is not None}
    roc = {name: found["curves"]["roc"] for name, found in results.items() if "roc" in found["curves"]}
    pictures = [row for found in results.values() for row in found["curves"].get("pictures", [])]
    return Drawn(roc, pictures, bench.ablation)


def _place(card: dict[str, Any], path: tuple[str, ...], section: dict[str, Any]) -> None:
    """Put `section` into the card at `path`, beside existing content."""
    if not section:
        return
    for key in path:
        card = card.setdefault(key, {})
    for key, value in section.items():
        if isinstance(value, dict) and isinstance(card.get(key), dict):
            _place(card, (key,), value)
        else:
            card[key] = value


def _samples(bundle: Bundle) -> Any:
    path = bundle.path / "samples" / "answers.json"
    return json.loads(path.read_text("utf-8")) if path.is_file() else {}


def check(found: Mapping[str, Any], bounds: Sequence[Bound]) -> list[dict[str, Any]]:
    """One row for each bound: figure, value, bound, whether it is kept, n and seed; None where it was not measured.

    `found` are the card's figures. `TrainingError` for bounds on figures that no unit measures.
    """
    known_figures(bounds)
    rows, titles = [], figures()
    for bound in bounds:
        figure = found.get(bound.figure)
        row: dict[str, Any] = {**bound.model_dump(), "title": titles[bound.figure]}
        if figure is None:
            row |= {"value": None, "n": 0, "seed": None, "pass": None}
        else:
            value = figure["value"]
            kept = value >= bound.bound if bound.kind == "at_least" else value <= bound.bound
            row |= {"value": value, "n": figure["n"], "seed": figure["seed"], "pass": kept}
        rows.append(row)
    return rows


def write_card(folder: Path, card: dict[str, Any], shown: Drawn = Drawn()) -> None:
    """`card.json`, `card.md` and `report.html` of a bundle folder."""
    bounds = check(card["figures"], Evaluation.model_validate(card["settings"]).bounds)
    write_text(folder / CARD, json.dumps(card, indent=1) + "\n")
    write_text(folder / PAGE, page_of(card, bounds))
    write_text(folder / REPORT, html(card, bounds, places_of(UNITS.values()), shown))


def page_of(card: Mapping[str, Any], bounds: Sequence[Mapping[str, Any]]) -> str:
    """The card's page of Markdown; `bounds` are the rows of `check`."""
    return markdown(card, bounds, places_of(UNITS.values()))
