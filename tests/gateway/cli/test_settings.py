"""`palisade settings`, and the page of the documentation that it makes."""

from __future__ import annotations

from pathlib import Path

import orjson
import pytest
from typer.testing import CliRunner

from gateway.cli.main import app
from gateway.settings import Settings

PAGE = Path(__file__).parents[3] / "docs" / "settings.md"


def test_the_page_is_what_the_command_prints() -> None:
    result = CliRunner().invoke(app, ["settings", "--form", "markdown"])
    assert result.exit_code == 0
    assert result.output == PAGE.read_text("utf-8"), "run: palisade settings --form markdown > docs/settings.md"


def test_every_setting_says_what_it_means() -> None:
    assert [name for name, field in Settings.model_fields.items() if not field.description] == []


def test_values_are_those_of_the_environment_and_secrets_stay_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PALISADE_METRICS_TOKEN", "the-token")
    monkeypatch.setenv("PALISADE_ALPHA", "0.05")
    rows = {
        row["variable"]: row for row in orjson.loads(CliRunner().invoke(app, ["settings", "--form", "json"]).output)
    }
    assert rows["PALISADE_ALPHA"]["value"] == 0.05
    assert rows["PALISADE_ALPHA"]["given"]
    assert rows["PALISADE_RATE"]["value"] is None
    assert not rows["PALISADE_RATE"]["given"]
    assert rows["PALISADE_METRICS_TOKEN"]["value"] is None
    table = CliRunner().invoke(app, ["settings"]).output
    assert "(secret)" in table
    assert "the-token" not in table


def test_a_value_that_is_not_allowed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PALISADE_ALPHA", "2")
    result = CliRunner().invoke(app, ["settings"])
    assert result.exit_code == 2
    assert "PALISADE_ALPHA" in result.output
