"""A card written anew: other words, the same measurements."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from gateway.core.loading import load_bundle, read_manifest, write_manifest
from training.commands.main import app
from training.errors import TrainingError
from training.evaluate.presentation.kept import kept_of
from training.evaluate.rewrite import rewrite
from training.evaluate.summary import POOLED, ROWS, summary

ROOT = Path(__file__).resolve().parents[3]
FILES = ("card.json", "card.md", "report.html", "manifest.json")


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """A copy of the shipped bundle."""
    return Path(shutil.copytree(ROOT / "models" / "gtsrb", tmp_path / "gtsrb"))


def card_of(path: Path) -> dict[str, Any]:
    card: dict[str, Any] = json.loads((path / "card.json").read_text("utf-8"))
    return card


def put(path: Path, card: dict[str, Any]) -> None:
    (path / "card.json").write_text(json.dumps(card))
    write_manifest(path, read_manifest(path), as_read=True)


def test_a_card_of_schema_3_gets_titles_and_keeps_its_measurements(own: Path) -> None:
    before = {name: (own / name).read_text("utf-8") for name in ("card.md", "report.html")}
    card = card_of(own)
    old = {key: value for key, value in card.items() if key not in ("titles", "plain", "forwards")} | {
        "schema_version": 3
    }
    put(own, old)
    new = rewrite(own)
    assert {key: new[key] for key in old if key != "schema_version"} == {
        key: old[key] for key in old if key != "schema_version"
    }
    assert new == card
    assert load_bundle(own).card() == new
    assert {name: (own / name).read_text("utf-8") for name in before} == before


def test_writing_anew_twice_changes_nothing(own: Path) -> None:
    before = {name: (own / name).read_bytes() for name in FILES}
    rewrite(own)
    assert {name: (own / name).read_bytes() for name in FILES} == before


def test_curves_and_pictures_are_taken_over(own: Path) -> None:
    before = kept_of((own / "report.html").read_text("utf-8"))
    assert any(label.startswith("ROC: ") for label in before.charts)
    assert before.pictures
    rewrite(own)
    after = kept_of((own / "report.html").read_text("utf-8"))
    assert after.pictures == before.pictures
    assert after.charts.keys() == before.charts.keys()


def test_a_card_that_contradicts_itself_or_is_of_another_schema_is_not_written_anew(own: Path) -> None:
    card = card_of(own)
    forged = json.loads(json.dumps(card))
    forged["figures"]["joint_8"]["value"] = 0.1
    put(own, forged)
    with pytest.raises(TrainingError, match="contradicts itself: wrong and not flagged"):
        rewrite(own)
    put(own, card | {"schema_version": 2})
    with pytest.raises(TrainingError, match="schema version 2; those of 3, 4, 5"):
        rewrite(own)
    assert not list(own.parent.glob("*.part"))


def test_the_commands(own: Path) -> None:
    done = CliRunner().invoke(app, ["evaluate", str(own), "--rewrite", "--summary"])
    assert done.exit_code == 0, done.output
    assert "card written anew" in " ".join(done.stderr.split())
    assert done.stdout == summary(card_of(own))
    (own / "card.json").unlink()
    write_manifest(own, read_manifest(own))
    for option in ("--rewrite", "--summary"):
        done = CliRunner().invoke(app, ["evaluate", str(own), option])
        assert done.exit_code == 2
        assert "no card" in " ".join(done.output.split())


@pytest.mark.parametrize("pool", [False, True])
def test_the_summary_has_six_rows_with_n_seed_and_date(own: Path, pool: bool) -> None:
    card = card_of(own)
    if not pool:
        card["figures"] = {name: row for name, row in card["figures"].items() if name not in POOLED.values()}
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in summary(card).splitlines()[2:]]
    assert len(rows) == len(ROWS) == 6
    dates = {row["date"] for row in card["units"]}
    for (_, value, n, seed, date), (_, usual) in zip(rows, ROWS, strict=True):
        figures = [POOLED.get(name, name) if pool else name for name in usual]
        shares = [f"{100 * card['figures'][figure]['value']:.1f} %" for figure in figures]
        assert value == " / ".join(shares)
        assert n == f"{card['figures'][figures[0]]['n']:,}"
        assert seed == "0"
        assert date in dates
    assert "knows everything" in rows[-1][0]
    card["figures"].pop("pool_adaptive_0.05", None)
    card["figures"].pop("joint_8")
    assert summary(card).splitlines()[-1].endswith("| not measured | | | |")


def test_the_readme_has_the_summary_of_the_shipped_card() -> None:
    """`palisade evaluate models/gtsrb --summary` prints what stands between the marks."""
    readme = (ROOT / "README.md").read_text("utf-8")
    assert readme.count("<!-- summary:begin -->") == readme.count("<!-- summary:end -->") == 1
    told = readme.partition("<!-- summary:begin -->\n")[2].partition("<!-- summary:end -->")[0]
    assert told.strip() == summary(card_of(ROOT / "models" / "gtsrb")).strip()
