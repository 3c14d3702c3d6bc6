from __future__ import annotations

import json
from pathlib import Path

import pytest

from gateway.core.loading import load_bundle
from tests.training.commands.running import run


def test_the_plan_is_told_and_nothing_is_done(own: Path, tmp_path: Path) -> None:
    code, said = run("evaluate", own, "--list", "--level", "0", "--work", tmp_path / "work")
    assert code == 0
    assert "benign" in said
    assert "pgd_8" not in said
    assert not (tmp_path / "work" / "units").exists()


def test_unknown_levels_and_units(own: Path) -> None:
    for option, name in (("--level", "7"), ("--only", "luck")):
        code, said = run("evaluate", own, option, name)
        assert code == 2
        assert f"unknown {'level' if option == '--level' else 'unit'} '{name}'" in said


def test_a_partial_card_stays_in_the_work_folder_unless_it_is_installed(own: Path, tmp_path: Path) -> None:
    work = tmp_path / "work"
    before = (own / "manifest.json").read_bytes()
    code, said = run("evaluate", own, "--only", "benign", "--work", work)
    assert code == 0, said
    assert "keeps its card" in said
    assert (work / "card.md").is_file()
    assert (own / "manifest.json").read_bytes() == before
    code, said = run("evaluate", own, "--only", "benign", "--work", work, "--install")
    assert code == 0, said
    card = load_bundle(own).card()
    assert card is not None
    assert card["status"] == "incomplete"
    assert (own / "report.html").is_file()


def test_the_newest_ablation_of_the_same_data_is_drawn(
    own: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    results = tmp_path / "benchmarks" / "results"
    results.mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    summary = {"at": {"clean": {"mean": 0.9, "sd": 0.01}}}

    def drawn(day: int, source: str, *options: object) -> bool:
        table = {"summary": summary, "study": {"base": {"data": {"source": source}}}}
        (results / f"ablation-{day}.json").write_text(json.dumps(table))
        code, said = run("evaluate", own, "--only", "benign", "--work", tmp_path / "work", *options)
        assert code == 0, said
        return "Ablation at equal budget" in (tmp_path / "work" / "report.html").read_text()

    assert drawn(1, "npz:gratings")
    assert not drawn(2, "npz:others")
    assert drawn(2, "npz:others", "--ablation", results / "ablation-1.json")
    code, said = run(
        "evaluate", own, "--only", "benign", "--work", tmp_path / "work", "--ablation", results / "no.json"
    )
    assert code == 2
    assert "no.json: No such file" in said


def test_missing_data_and_altered_bundles_are_named(own: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (own / "weights.bin").write_bytes(b"other")
    code, said = run("evaluate", own, "--only", "benign", "--work", tmp_path / "work")
    assert code == 2
    assert "weights.bin" in said
    monkeypatch.setenv("PALISADE_DATA", str(tmp_path))
    code, said = run("verify", tmp_path / "nothing")
    assert code == 2
    assert "nothing" in said


def test_data_that_are_gone_are_named(own: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PALISADE_DATA", str(tmp_path))
    code, said = run("evaluate", own, "--work", tmp_path / "work")
    assert code == 2
    assert "gratings.npz is missing" in said
