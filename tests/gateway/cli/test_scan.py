"""`palisade scan`: folders into a report, in this process and by a gateway, interrupted and taken up again."""

from __future__ import annotations

import json
import os
import resource
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest
from typer.testing import CliRunner, Result

from gateway.app import create_api
from gateway.cli.files import find_images
from gateway.cli.main import app
from gateway.cli.scan import Report
from gateway.cli.sources import Local
from gateway.core.pipeline import Pipeline
from gateway.errors import EngineError
from gateway.settings import Settings
from gateway.versions.registry import Registry
from tests.gateway.http_thread import serving
from tests.gateway.tiny import add_votes, clean_image, encode, patched_image, write_bundle

runner = CliRunner()
CLEAN, PATCHED, GREEN = encode(clean_image()), encode(patched_image()), encode(clean_image((0, 120, 0)))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "images"
    for name, data in {
        "z.png": CLEAN,
        "a/patched.PNG": PATCHED,
        "a/no suffix": GREEN,
        "a/cut.png": CLEAN[:-30],
        "a/notes.txt": b"text",
        "a/.hidden.png": CLEAN,
        "b/c/green.webp": encode(clean_image((0, 120, 0)), "WEBP", lossless=True),
        ".cache/x.png": CLEAN,
    }.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return root


FOUND = ["z.png", "a/cut.png", "a/no suffix", "a/patched.PNG", "b/c/green.webp"]


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "report.jsonl"


def run_scan(folder: Path, out: Path, *options: object, models: Path | None = None) -> Result:
    chosen = ["-m", str(models)] if models else []
    return runner.invoke(app, ["scan", str(folder), "--out", str(out), *chosen, *map(str, options)])


def rows(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in out.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")]


def names(entries: Sequence[dict[str, Any]], folder: Path) -> list[str]:
    return [Path(row["path"]).relative_to(folder).as_posix() for row in entries]


def test_folders_are_walked_in_one_order(folder: Path) -> None:
    files = find_images([folder, folder / "z.png", folder / "a", folder / "absent"])
    assert [file.path for file in files] == [*(folder / name for name in FOUND), folder / "absent"]
    assert [str(file.relative) for file in files] == [*FOUND, "absent"]


def test_a_line_for_each_image(folder: Path, out: Path, bundle_folder: Path) -> None:
    result = run_scan(folder, out, "--batch", 2, "--only-flagged", models=bundle_folder)
    assert result.exit_code == 1
    report = {Path(row["path"]).relative_to(folder).as_posix(): row for row in rows(out)}
    assert list(report) == FOUND
    labels = {name: (row["label"], row["flagged"], row["neutralized"]) for name, row in report.items()}
    assert labels == {
        "z.png": ("red", False, False),
        "a/cut.png": (None, None, None),
        "a/no suffix": ("green", False, False),
        "a/patched.PNG": ("red", True, True),
        "b/c/green.webp": ("green", False, False),
    }
    assert report["a/cut.png"]["error"] == "undecodable_image"
    assert report["z.png"]["p_value"] > 0.01 >= report["a/patched.PNG"]["p_value"]
    assert {(row["model"], row["version"], row["alpha"], row["action"]) for row in report.values()} == {
        ("tiny", "1.0.0", 0.01, "sanitize")
    }
    assert [line.split("\t")[0] for line in result.stdout.splitlines()] == [str(folder / "a/patched.PNG")]
    assert "1 flagged (25.00%; of benign images at most 1.00% are)" in result.stderr
    assert "1 failed: undecodable_image" in result.stderr


def test_a_second_run_judges_what_is_new_or_has_changed(folder: Path, out: Path, bundle_folder: Path) -> None:
    run_scan(folder, out, models=bundle_folder)
    first = out.read_bytes()
    assert "0 new, 5 in" in run_scan(folder, out, models=bundle_folder).stderr
    assert out.read_bytes() == first
    os.utime(folder / "z.png")
    (folder / "a/patched.PNG").write_bytes(CLEAN)
    (folder / "new.png").write_bytes(PATCHED)
    run_scan(folder, out, models=bundle_folder)
    added = rows(out)[5:]
    assert names(added, folder) == ["new.png", "a/patched.PNG"]
    assert [row["flagged"] for row in added] == [True, False]


def test_suspects_are_counted_again_by_a_second_run(folder: Path, out: Path, tmp_path: Path) -> None:
    lenient = write_bundle(tmp_path / "lenient" / "tiny", strictness=100)
    for new in (5, 0):
        said = run_scan(folder, out, models=lenient).output
        assert f"{new} new" in said
        assert "1 suspect, not flagged" in said
    patched = next(row for row in rows(out) if row["path"].endswith("patched.PNG"))
    assert (patched["flagged"], patched["level"]) == (False, "suspect")
    older = [{name: value for name, value in row.items() if name != "level"} for row in rows(out)]
    out.write_text("".join(json.dumps(row) + "\n" for row in older))
    assert "0 new" in run_scan(folder, out, models=lenient).output


def test_another_version_or_policy_judges_everything_again(folder: Path, out: Path, tmp_path: Path) -> None:
    run_scan(folder, out, models=write_bundle(tmp_path / "one"))
    run_scan(folder, out, models=write_bundle(tmp_path / "two", version="1.1.0"))
    run_scan(folder, out, models=write_bundle(tmp_path / "three", version="1.1.0", action="observe"))
    assert [(row["version"], row["action"]) for row in rows(out)[::5]] == [
        ("1.0.0", "sanitize"),
        ("1.1.0", "sanitize"),
        ("1.1.0", "observe"),
    ]
    assert len(rows(out)) == 15


@pytest.mark.parametrize("cut", [1, 5, 20, 300])
def test_a_torn_line_is_repaired(folder: Path, out: Path, bundle_folder: Path, cut: int) -> None:
    run_scan(folder, out, models=bundle_folder)
    whole = out.read_bytes()
    out.write_bytes(whole[:-cut])
    run_scan(folder, out, models=bundle_folder)
    assert out.read_bytes() == whole


def test_what_cannot_be_read_has_a_row(
    folder: Path, out: Path, bundle_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder that is closed, a file that is, and a link to nothing: none of them is missing without a word."""
    (folder / "link.png").symlink_to(target := folder / "elsewhere.png")
    scandir, opened = os.scandir, Path.open

    def closed_folder(path: Any) -> Any:
        if Path(path).name == "c":
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    def closed_file(path: Path, *options: Any, **named: Any) -> Any:
        if path.name == "no suffix":
            raise PermissionError(13, "Permission denied", str(path))
        return opened(path, *options, **named)

    monkeypatch.setattr(os, "scandir", closed_folder)
    monkeypatch.setattr(Path, "open", closed_file)
    assert run_scan(folder, out, models=bundle_folder).exit_code == 1
    unreadable = [row["path"] for row in rows(out) if row["error"] == "unreadable_file"]
    assert unreadable == [str(folder / name) for name in ("link.png", "a/no suffix", "b/c")]
    monkeypatch.undo()
    target.write_bytes(CLEAN)
    assert run_scan(folder, out, models=bundle_folder).exit_code == 1
    assert [row["error"] for row in rows(out)[-4:]] == [None] * 4


def test_an_image_too_large_is_judged_once_it_may_be(
    folder: Path, out: Path, bundle_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PALISADE_MAX_PIXELS", "64")
    assert "failed: image_too_large" in run_scan(folder, out, models=bundle_folder).stderr
    monkeypatch.undo()
    assert "failed: image_too_large" not in run_scan(folder, out, models=bundle_folder).stderr


def test_two_scans_of_one_report(folder: Path, out: Path, bundle_folder: Path) -> None:
    report = Report(out)
    second = run_scan(folder, out, models=bundle_folder)
    assert (second.exit_code, out.read_bytes()) == (2, b"")
    assert "another palisade scan" in second.stderr
    report.close()
    assert run_scan(folder, out, models=bundle_folder).exit_code == 1


def test_a_full_disk_ends_the_scan_and_loses_no_row(folder: Path, out: Path, bundle_folder: Path) -> None:
    """Of a write that goes beyond the limit the system takes the first part without an error."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        full = run_scan(folder, out, models=bundle_folder)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert (full.exit_code, out.stat().st_size) == (2, 1000)
    assert "File too large" in full.stderr
    assert run_scan(folder, out, models=bundle_folder).exit_code == 1
    assert names(rows(out), folder) == FOUND


@pytest.mark.parametrize("other", [CLEAN, b"{}\n", b"[1]\n", b'{"path": "x"}\n', b"text without an end"])
def test_a_file_that_is_no_report_is_left_alone(folder: Path, out: Path, bundle_folder: Path, other: bytes) -> None:
    out.write_bytes(other)
    result = run_scan(folder, out, models=bundle_folder)
    assert result.exit_code == 2
    assert "choose another --out" in result.stderr
    assert out.read_bytes() == other


def test_interrupted_and_taken_up_again(
    folder: Path, out: Path, bundle_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    judge = Local.judge

    def interrupted(self: Local, prepared: Sequence[Any]) -> Any:
        if out.stat().st_size:
            raise KeyboardInterrupt
        return judge(self, prepared)

    monkeypatch.setattr(Local, "judge", interrupted)
    result = run_scan(folder, out, "--batch", 2, models=bundle_folder)
    assert result.exit_code == 130
    assert "3 are left" in result.stderr
    assert names(rows(out), folder) == FOUND[:2]
    monkeypatch.undo()
    assert run_scan(folder, out, models=bundle_folder).exit_code == 1
    assert names(rows(out), folder) == FOUND


def test_an_image_that_the_engine_fails_on_fails_alone(
    folder: Path, out: Path, bundle_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decide_images = Pipeline.decide_images

    def fails(self: Pipeline, images: Sequence[Any], **options: Any) -> Any:
        if any(image.max() == 255 for image in images):
            raise EngineError("not finite")
        return decide_images(self, images, **options)

    monkeypatch.setattr(Pipeline, "decide_images", fails)
    run_scan(folder, out, models=bundle_folder)
    assert {row["error"] for row in rows(out)} == {None, "undecodable_image", "internal_error"}
    monkeypatch.undo()
    run_scan(folder, out, models=bundle_folder)
    assert names(rows(out)[5:], folder) == ["a/patched.PNG"]


def test_usage(tmp_path: Path, folder: Path, out: Path, bundle_folder: Path) -> None:
    for result, said in (
        (run_scan(tmp_path / "absent", out, models=bundle_folder), "no such file or folder"),
        (run_scan(tmp_path / ("x" * 300), out, models=bundle_folder), "File name too long"),
        (run_scan(folder / "a" / "..", tmp_path, models=bundle_folder), "Is a directory"),
        (run_scan(folder, out, "--url", "ftp://x"), "expected http://host:port"),
        (run_scan(folder, out, "--url", "http://127.0.0.1:1"), "does not answer"),
        (run_scan(folder, out, "--url", "http://127.0.0.1:1", models=bundle_folder), "--models is for this process"),
    ):
        assert result.exit_code == 2
        assert said in result.stderr
    (tmp_path / "empty").mkdir()
    assert "no images in" in run_scan(tmp_path / "empty", out, models=bundle_folder).stderr
    assert not out.exists()


def test_by_a_gateway_as_in_this_process(folder: Path, out: Path, bundle_folder: Path, pipeline: Pipeline) -> None:
    run_scan(folder, out, models=bundle_folder)
    api = create_api(Settings(audit=False))
    api.state.registry = Registry([pipeline])
    remote = out.with_name("remote.jsonl")
    with serving(api) as url:
        assert run_scan(folder, remote, "--url", url, "--batch", 3).exit_code == 1
        assert "0 new" in run_scan(folder, remote, "--url", url).stderr

    def judged(report: Path) -> list[dict[str, Any]]:
        return [{name: value for name, value in row.items() if name != "detail"} for row in rows(report)]

    assert judged(remote) == judged(out)


def test_a_gateway_that_is_busy_is_waited_for_and_one_that_fails_ends_the_scan(
    folder: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    statuses = [429, 200, 503, 200, 403, 401, 401, 401, 401, 401]

    def handle(request: httpx.Request) -> httpx.Response:
        if request.url.path == "/v1/models":
            return httpx.Response(200, json={"models": [{"name": "tiny", "default": True}]})
        assert request.headers["authorization"] == "Bearer pal_x"
        status = statuses.pop(0)
        body: dict[str, Any] = (
            {"prediction": {"label": "red", "index": 0}} if status == 200 else {"code": f"c{status}", "detail": "no"}
        )
        if status == 403:
            body["code"] = "blocked_by_policy"
        return httpx.Response(status, json=body, headers={"Retry-After": "0"})

    client = httpx.Client
    monkeypatch.setattr(
        "gateway.client.httpx.Client", lambda **options: client(transport=httpx.MockTransport(handle), **options)
    )
    result = run_scan(folder, out, "--url", "http://gateway", "--key", "pal_x", "--batch", 1)
    assert result.exit_code == 2
    assert "401 c401" in result.stderr
    told = [(row["label"], row["flagged"], row["error"]) for row in rows(out)]
    assert told == [("red", None, None), ("red", None, None), (None, True, None)]


def test_certificates_have_a_column_and_a_count(folder: Path, out: Path, bundle_folder: Path) -> None:
    options = ("--certify", "patch", "--patch-side", 2)
    result = run_scan(folder / "a", out, *options, models=bundle_folder)
    levels = [row["certificate"] for row in rows(out)]
    assert levels[0] is None  # the cut file
    assert set(levels[1:]) <= {"none", "agreed", "proved"}
    assert {row["certified"] for row in rows(out)} == {"proved, patch 2"}
    counted = f"{levels.count('proved')} proved"
    assert f"certificates (proved, patch 2): {counted}" in " ".join(result.output.split())
    again = run_scan(folder / "a", out, *options, models=bundle_folder)
    assert "0 new" in again.output
    assert counted in again.output
    assert "3 new" in run_scan(folder / "a", out, *options, "--certify-level", "agreed", models=bundle_folder).output
    assert "certificates (" not in run_scan(folder / "a", out, models=bundle_folder).output


def test_a_report_without_votes_is_judged_again_with_them(
    folder: Path, out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    voting = add_votes(write_bundle(tmp_path / "voting"))
    run_scan(folder / "a", out, models=voting)
    assert {row["votes"] for row in rows(out)} == {None}
    monkeypatch.setenv("PALISADE_VOTES", "true")
    assert "3 new" in run_scan(folder / "a", out, models=voting).output
    assert [row["votes"] for row in rows(out)][-3:] == [6, 6, 6]
    assert "0 new" in run_scan(folder / "a", out, models=voting).output


def test_a_report_without_certificates_is_taken_up(folder: Path, out: Path, bundle_folder: Path) -> None:
    run_scan(folder, out, models=bundle_folder)
    kept = [{k: v for k, v in row.items() if k not in ("certificate", "certified")} for row in rows(out)]
    out.write_text("".join(json.dumps(row) + "\n" for row in kept))
    assert "0 new" in run_scan(folder, out, models=bundle_folder).output


def test_an_answer_below_the_required_level_is_an_error(
    folder: Path, out: Path, bundle_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PALISADE_REQUIRE", "proved")
    result = run_scan(folder, out, models=bundle_folder)
    refused = [row for row in rows(out) if row["error"] == "not_certified"]
    assert result.exit_code == 1
    assert all(row["label"] is None for row in refused)
    assert len(refused) + sum(row["certificate"] == "proved" for row in rows(out)) == len(FOUND) - 1


def test_parameters_of_no_certificate_are_refused(folder: Path, out: Path, bundle_folder: Path) -> None:
    result = run_scan(folder, out, "--patch-side", 2, models=bundle_folder)
    assert result.exit_code == 2
    assert "send certify=patch" in result.output


def test_a_gateway_certifies_what_it_scans(folder: Path, out: Path, pipeline: Pipeline) -> None:
    api = create_api(Settings(audit=False))
    api.state.registry = Registry([pipeline])
    with serving(api) as url:
        run_scan(folder, out, "--url", url, "--certify", "patch", "--certify-level", "agreed")
    assert {row["certificate"] for row in rows(out)} <= {None, "none", "agreed"}
    assert {row["certified"] for row in rows(out)} == {"patch agreed"}
