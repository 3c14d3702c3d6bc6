"""The keys file: `palisade keys`, reloading, and what a broken file does."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from gateway.access import keys
from gateway.access.keys import KeyRing, read_keys
from gateway.cli.keys import app
from gateway.errors import ConfigError

runner = CliRunner()


def create(file: Path, name: str, *options: str) -> str:
    result = runner.invoke(app, ["create", "--id", name, "--file", str(file), *options])
    assert result.exit_code == 0, result.output
    return result.stdout.strip()


def test_create_list_revoke(tmp_path: Path) -> None:
    file = tmp_path / "keys.json"
    key = create(file, "shop", "--role", "reviewer", "--rate", "5", "--burst", "10", "--disclosure", "label")
    assert key.startswith("pal_")
    assert len(key) == 4 + 43
    assert file.stat().st_mode & 0o777 == 0o600
    assert key not in file.read_text()
    (entry,) = json.loads(file.read_text())
    assert (entry["role"], entry["rate"], entry["burst"], entry["disclosure"]) == ("reviewer", 5.0, 10, "label")
    file.chmod(0o644)  # for the user that a container runs as
    create(file, "other")
    assert file.stat().st_mode & 0o777 == 0o644
    listed = runner.invoke(app, ["list", "--file", str(file)]).output
    assert "shop" in listed
    assert entry["sha256"][:8] not in listed
    again = runner.invoke(app, ["create", "--id", "shop", "--file", str(file)])
    assert again.exit_code == 2
    assert "already" in again.output
    assert runner.invoke(app, ["revoke", "shop", "--file", str(file)]).exit_code == 0
    assert {key.id: key.disabled for key in read_keys(file)} == {"shop": True, "other": False}
    assert runner.invoke(app, ["revoke", "nobody", "--file", str(file)]).exit_code == 2
    assert runner.invoke(app, ["list", "--file", str(tmp_path / "absent")]).exit_code == 2
    assert not [path for path in tmp_path.iterdir() if path != file]


@pytest.mark.parametrize("options", [["--id", "a b"], ["--id", "a", "--rate", "-1"], ["--id", "a", "--burst", "0"]])
def test_bad_options_are_told(tmp_path: Path, options: list[str]) -> None:
    result = runner.invoke(app, ["create", *options, "--file", str(tmp_path / "k.json")])
    assert result.exit_code == 2
    assert "Traceback" not in result.output
    assert not (tmp_path / "k.json").exists()


def test_the_ring_follows_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "keys.json"
    key = create(file, "shop")
    ring = KeyRing(file)
    found = ring.find(key)
    assert found is not None
    assert found.id == "shop"
    assert ring.find(key + "x") is None
    assert ring.find("") is None
    second = create(file, "second")
    assert ring.find(second) is None  # looked at most once a second
    monkeypatch.setattr(keys, "RELOAD_SECONDS", 0.0)
    assert ring.find(second) is not None
    runner.invoke(app, ["revoke", "shop", "--file", str(file)])
    assert ring.find(key) is None
    assert ring.get("second") is not None


@pytest.mark.parametrize("text", ["", "{", "{}", '[{"id": "a"}]', None])
def test_a_broken_file_keeps_the_last_good_keys(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, text: str | None
) -> None:
    monkeypatch.setattr(keys, "RELOAD_SECONDS", 0.0)
    file = tmp_path / "keys.json"
    key = create(file, "shop")
    ring = KeyRing(file)
    assert ring.find(key) is not None
    if text is None:
        file.unlink()
    else:
        file.write_text(text)
    for _ in range(3):
        assert ring.find(key) is not None
    assert sum("not reloaded, 1 stay valid" in record.message for record in caplog.records) == 1
    assert KeyRing(file).find(key) is None  # nothing good was ever read: nobody gets in
    time.sleep(0.01)
    other = create(tmp_path / "new.json", "other")
    (tmp_path / "new.json").replace(file)
    assert (ring.find(key), ring.find(other) is not None) == (None, True)


def test_a_file_that_may_be_read_again_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As when root revokes a key, and gives the file to the gateway's user afterwards: only its owner changes."""
    monkeypatch.setattr(keys, "RELOAD_SECONDS", 0.0)
    file = tmp_path / "keys.json"
    key = create(file, "shop")
    ring = KeyRing(file)
    assert ring.find(key) is not None
    runner.invoke(app, ["revoke", "shop", "--file", str(file)])

    def denied(_: Path) -> bytes:
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_bytes", denied)
        assert ring.find(key) is not None
    assert ring.find(key) is None


def test_errors_of_the_file_do_not_show_hashes(tmp_path: Path) -> None:
    file = tmp_path / "keys.json"
    create(file, "shop")
    secret = json.loads(file.read_text())[0]["sha256"][:-1]
    file.write_text(file.read_text().replace(secret, secret.upper() + "Z"))
    with pytest.raises(ConfigError, match=r"keys.json: 0.sha256: ") as refused:
        read_keys(file)
    assert secret.upper() not in refused.value.detail
    assert secret not in refused.value.detail
