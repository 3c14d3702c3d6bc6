"""`palisade evaluate` and `palisade verify`."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import typer
from rich.table import Table

from gateway.core.loading import Bundle, load_bundle, write_manifest
from training.bundling.provenance import made_with
from training.bundling.recalibrate import card_measured
from training.bundling.recipe import load_bundle_recipe
from training.commands.terminal import BundlePath, Threads, command, console, errors, progress_bars, use_threads
from training.errors import TrainingError
from training.evaluate.card import REPORT, assemble, drawn, extended, without_units, write_card
from training.evaluate.harness.bench import Bench
from training.evaluate.harness.store import Store
from training.evaluate.harness.unit import LEVELS
from training.evaluate.presentation.kept import kept_of
from training.evaluate.registration import differences, measured_before, read_registration
from training.evaluate.rewrite import rewrite
from training.evaluate.run import duration, finished, plan, run_units
from training.evaluate.summary import summary
from training.evaluate.units import UNITS, chosen, known_figures
from training.evaluate.verify import verify as verify_bundle
from training.util.atomic import draft_of

_LEVELS = "; ".join(f"{level}: {text}" for level, text in LEVELS.items())


@command
def evaluate(
    bundle: BundlePath = Path("models/gtsrb"),
    level: Annotated[
        list[str] | None,
        typer.Option(help=f"Measure these levels (default: all). {_LEVELS}; basic: what `build` measures."),
    ] = None,
    only: Annotated[list[str] | None, typer.Option(help="Measure these units (`--list` names them).")] = None,
    config: Annotated[
        Path | None,
        typer.Option(help="Bundle recipe whose `evaluation` applies; default: the one that built the bundle."),
    ] = None,
    n: Annotated[
        int | None,
        typer.Option(min=1, help="Largest number of images per unit, for a quick look (default: the recipe's)."),
    ] = None,
    work: Annotated[
        Path | None, typer.Option(help="Folder of finished measurements; default: runs/evaluate-NAME-VERSION.")
    ] = None,
    photos: Annotated[Path | None, typer.Option(help="Folder of photos that show none of the classes.")] = None,
    ablation: Annotated[
        Path | None,
        typer.Option(help="Ablation table (JSON) to draw in the report; default: the newest in benchmarks/results/."),
    ] = None,
    device: Annotated[
        Literal["cpu", "cuda"], typer.Option(help="Device that runs the attacks; answers are the CPU's.")
    ] = "cpu",
    registration: Annotated[
        Path | None, typer.Option(help="Registration that the card is held to (`palisade card register`).")
    ] = None,
    install: Annotated[
        bool | None,
        typer.Option(help="Write the card into the bundle; default: only a card without missing or reduced units."),
    ] = None,
    add: Annotated[
        bool, typer.Option("--add", help="Put what is measured now into the bundle's card, and keep the rest of it.")
    ] = False,
    show: Annotated[bool, typer.Option("--list", help="List the units and how long each may take.")] = False,
    anew: Annotated[
        bool,
        typer.Option("--rewrite", help="Measure nothing: write card.md, report.html and titles anew from card.json."),
    ] = False,
    short: Annotated[
        bool, typer.Option("--summary", help="Measure nothing: print six rows of the card as a Markdown table.")
    ] = False,
    threads: Threads = None,
) -> None:
    """Attack a bundle as it is served and write its card. What was measured before is kept; a killed run resumes.

    Exit code 1 where a self-check of the harness fails: the card is written, and marked.
    """
    use_threads(threads)
    if anew or short:
        _from_card(bundle, anew=anew, short=short)
        return
    names = chosen(level or (), only or ())
    bench = _open(load_bundle(bundle), config, n, work, photos, ablation, device)
    if registration is not None:
        _hold(bench, registration, add=add)
    if show:
        console.print(_planned(bench, names))
        return
    with progress_bars() as bars:
        bench.progress = bars.step
        failed = run_units(bench, names, log=lambda line: errors.print(line, markup=False, highlight=False))
        card = assemble(bench)
    if add:
        card, install = _added(bench, card), True
    _write(bundle, bench, card, install=install, kept=add)
    if failed:
        raise TrainingError("; ".join(f"{name}: {why}" for name, why in failed.items()))
    if card["status"] == "failed":
        wrong = ", ".join(row["title"] for row in card["checks"] if row["passed"] is False)
        errors.print(f"self-checks failed: {wrong}", style="red", markup=False, soft_wrap=True)
        raise typer.Exit(1)


@command
def verify(
    bundles: Annotated[list[Path] | None, typer.Argument(help="Folders of bundles; default: all of models/.")] = None,
    n: Annotated[
        int | None,
        typer.Option(min=1, help="Number of images that each unit measures again; default: the unit's own number."),
    ] = None,
    threads: Threads = None,
) -> None:
    """Compare cards with their own outcomes and measure some figures again; exit code 1 if one does not agree."""
    use_threads(threads)
    paths = bundles or sorted(path.parent for path in Path("models").glob("*/manifest.json"))
    if not paths:
        raise TrainingError("models/ holds no bundle; name one")
    passed = True
    for path in paths:
        with progress_bars() as bars:
            rows = verify_bundle(load_bundle(path), bars.step, count=n)
        console.print(_verified(path, rows))
        passed &= all(row["pass"] for row in rows)
    if not passed:
        raise typer.Exit(1)


def _from_card(path: Path, *, anew: bool, short: bool) -> None:
    """What needs no data: the bundle's card files written anew, and its summary printed."""
    card = rewrite(path) if anew else load_bundle(path).card()
    if card is None:
        raise TrainingError(f"{path}: no card; `palisade evaluate {path}` makes one")
    if anew:
        errors.print(f"card written anew: {path / 'card.md'}, {path / 'report.html'}", markup=False, soft_wrap=True)
    if short:
        typer.echo(summary(card), nl=False)


def _open(
    bundle: Bundle,
    config: Path | None,
    n: int | None,
    work: Path | None,
    photos: Path | None,
    ablation: Path | None,
    device: str,
) -> Bench:
    if device == "cuda" and not torch.cuda.is_available():
        raise TrainingError("--device cuda: torch finds no GPU here")
    data, settings = made_with(bundle)
    if config is not None:
        settings = load_bundle_recipe(config).evaluation
    known_figures(settings.bounds)
    store = Store(work or Path("runs") / f"evaluate-{bundle.name}-{bundle.version}")
    return Bench(
        bundle,
        data,
        settings.capped(n),
        store,
        asked=settings,
        device=device,
        photos=photos,
        ablation=_ablation(ablation, data.name),
    )


def _hold(bench: Bench, path: Path, *, add: bool) -> None:
    """Put the registration at `path` on the bench.

    `TrainingError` where this evaluation is not the registered one, or its card would have units that were measured
    before (those of the work folder; those of the bundle's card with `add`).
    """
    bundle, found = bench.bundle, read_registration(path)
    problems = differences(
        found,
        bundle=bundle.name,
        version=bundle.version,
        evaluation=bench.asked or bench.settings,
        data=bundle.manifest.data,
    )
    kept = (bundle.card() or {}).get("units", []) if add else []
    done = [row for name in UNITS if (row := finished(bench, name)) is not None]
    problems += measured_before(found, [*kept, *done])
    if problems:
        raise TrainingError("; ".join(problems))
    bench.registration = found.to_json()


def _ablation(path: Path | None, source: str) -> dict[str, Any] | None:
    """The table at `path`; without one the newest that is kept here, if it is of the same data."""
    newest = max(Path("benchmarks/results").glob("ablation-*.json"), default=None)
    if (found := path or newest) is None:
        return None
    try:
        table: dict[str, Any] = json.loads(found.read_text("utf-8"))
    except OSError as error:
        raise TrainingError(f"{found}: {error.strerror}") from None
    except ValueError as error:
        raise TrainingError(f"{found}: not JSON: {error}") from None
    return table if path or table["study"]["base"]["data"]["source"] == source else None


def _added(bench: Bench, fresh: dict[str, Any]) -> dict[str, Any]:
    card = bench.bundle.card()
    if card is None:
        raise TrainingError(f"{bench.bundle.path}: no card to add to; leave --add out")
    gone = [name for name, unit in UNITS.items() if not unit.only(bench.bundle)]
    return extended(without_units(card, gone), fresh)


def _write(path: Path, bench: Bench, card: dict[str, Any], *, install: bool | None, kept: bool) -> None:
    shown, report = drawn(bench), path / REPORT
    if kept and report.is_file():
        shown = replace(shown, kept=kept_of(report.read_text("utf-8")))
    write_card(bench.store.folder, card, shown)
    if install or (install is None and not card["missing"] and not card["reduced"]):
        with draft_of(path, copy=True) as draft:
            write_card(draft, card, shown)
            manifest = card_measured(bench.bundle.manifest, bench.bundle.calibration("cpu"))
            stated = manifest.training | {"evaluation": card["settings"]}
            write_manifest(draft, manifest.model_copy(update={"training": stated}))
        where = path
    else:
        where = bench.store.folder
        console.print(f"{path} keeps its card; --install writes this one into it", markup=False, highlight=False)
    missing = f"; missing: {', '.join(card['missing'])}" if card["missing"] else ""
    console.print(
        f"card ({card['status']}{missing}): {where / 'card.md'}, {where / 'report.html'}", markup=False, soft_wrap=True
    )


def _planned(bench: Bench, names: list[str]) -> Table:
    rows = plan(bench, names)
    table = Table(
        "unit",
        "level",
        "what",
        "images",
        "have",
        "may take",
        caption=f"in all {duration(sum(r.seconds for r in rows))}",
    )
    for row in rows:
        unit = UNITS[row.name]
        have = "-" if row.have is None else f"{row.have:,}"
        table.add_row(
            row.name, unit.level, unit.title, f"{row.n:,}", have, "done" if row.done else duration(row.seconds)
        )
    return table


def _verified(path: Path, rows: list[dict[str, Any]]) -> Table:
    table = Table("figure", "bound", "card", "n", "measured again", "n", "", title=str(path))
    for row in rows:
        sign = {"at_least": ">=", "at_most": "<="}.get(row.get("kind", ""), "")
        stated, value = ("-" if each is None else f"{each:.4f}" for each in (row["card"], row["value"]))
        bound = f"{sign} {row['bound']:g}" if sign else ""
        table.add_row(
            row["title"],
            bound,
            stated,
            str(row.get("n_card", "")),
            value,
            str(row["n"]),
            "pass" if row["pass"] else f"FAIL {row['why']}".strip(),
        )
    return table
